"""Synthetic anomalies: patches cut from one normal image and pasted or blended into another, and blemishes."""

from .augmentation import AUGMENTATIONS, augment, check_augment
from .blemishes import BLEMISH_KINDS, Blemishes
from .cutpaste import KINDS, CutPaste
from .dataset import Synthesis, SyntheticAnomalies, synthesize
from .patches import blend, circle, jitter_colors, rectangle, soft_alpha
from .poisson import BLEND_KINDS, Poisson, poisson_blend

__all__ = [
    "AUGMENTATIONS",
    "BLEMISH_KINDS",
    "BLEND_KINDS",
    "KINDS",
    "Blemishes",
    "CutPaste",
    "Poisson",
    "Synthesis",
    "SyntheticAnomalies",
    "augment",
    "blend",
    "check_augment",
    "circle",
    "jitter_colors",
    "poisson_blend",
    "rectangle",
    "soft_alpha",
    "synthesize",
]
