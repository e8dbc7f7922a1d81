"""Invertible maps of feature maps: `z, log_det = flow(x, context)`."""

from .base import Event, Flow
from .coupling import AffineCoupling
from .mixing import GlobalAffine, HardPermutation, SoftPermutation, Standardize
from .sequence import FlowSequence

__all__ = [
    "AffineCoupling",
    "Event",
    "Flow",
    "FlowSequence",
    "GlobalAffine",
    "HardPermutation",
    "SoftPermutation",
    "Standardize",
]
