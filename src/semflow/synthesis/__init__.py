"""Synthetic anomalies: patches cut from one normal image and pasted, softly, into another."""

from .blending import blend, soft_alpha
from .cutpaste import KINDS, CutPaste
from .dataset import SyntheticAnomalies
from .jitter import jitter_colors
from .masks import circle, rectangle, scar

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
