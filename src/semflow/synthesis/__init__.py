"""Synthetic anomalies: patches cut from one normal image and pasted, softly, into another."""

from semflow.synthesis.blend import blend, soft_alpha
from semflow.synthesis.cutpaste import KINDS, CutPaste
from semflow.synthesis.dataset import SyntheticAnomalies
from semflow.synthesis.jitter import jitter_colors
from semflow.synthesis.masks import circle, rectangle, scar

__all__ = [
    "KINDS",
    "CutPaste",
    "SyntheticAnomalies",
    "blend",
    "circle",
    "jitter_colors",
    "rectangle",
    "scar",
    "soft_alpha",
]
