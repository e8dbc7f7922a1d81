"""Synthetic anomalies: patches cut from one normal image and pasted into another with a soft border."""

from .blending import blend, soft_alpha
from .cutpaste import KINDS, CutPaste
from .dataset import SyntheticAnomalies
from .jitter import jitter_colors
from .masks import circle, rectangle

__all__ = [
    "KINDS",
    "CutPaste",
    "SyntheticAnomalies",
    "blend",
    "circle",
    "jitter_colors",
    "rectangle",
    "soft_alpha",
]
