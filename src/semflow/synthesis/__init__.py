"""Synthetic anomalies: patches cut from one normal image and pasted into another, and blemishes of other kinds."""

from .augmentation import AUGMENTATIONS, augment, check_augment
from .blemishes import BLEMISH_KINDS, Blemishes
from .cutpaste import KINDS, CutPaste
from .dataset import Synthesis, SyntheticAnomalies, synthesize
from .perlin import Perlin, perlin_noise
from .poisson import BLEND_KINDS, Poisson, poisson_blend
from .patches import blend, circle, jitter_colors, rectangle, soft_alpha

__all__ = [
    "AUGMENTATIONS",
    "BLEMISH_KINDS",
    "BLEND_KINDS",
    "KINDS",
    "Blemishes",
    "CutPaste",
    "Perlin",
    "Poisson",
    "Synthesis",
    "SyntheticAnomalies",
    "augment",
    "blend",
    "check_augment",
    "circle",
    "jitter_colors",
    "perlin_noise",
    "poisson_blend",
    "rectangle",
    "soft_alpha",
    "synthesize",
]
