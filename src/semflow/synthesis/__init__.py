"""Synthetic anomalies: patches cut from one normal image and pasted into another, and blemishes of other kinds."""

from .blemishes import BLEMISH_KINDS, Blemishes
from .cutpaste import KINDS, CutPaste
from .dataset import Synthesis, SyntheticAnomalies, synthesize
from .patches import blend, circle, jitter_colors, rectangle, soft_alpha

__all__ = [
    "BLEMISH_KINDS",
    "KINDS",
    "Blemishes",
    "CutPaste",
    "Synthesis",
    "SyntheticAnomalies",
    "blend",
    "circle",
    "jitter_colors",
    "rectangle",
    "soft_alpha",
    "synthesize",
]
