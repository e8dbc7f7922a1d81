"""Invertible maps of feature maps, `z, log_det = flow(x, context)`."""

from .base import Event, Flow
from .coupling import AffineCoupling, SplineCoupling
from .cross_scale import CrossScaleCoupling
from .fused_block import fused_kernels
from .mixing import GlobalAffine, HardPermutation, Identity, SoftPermutation
from .optional import OptionalFlow
from .pyramid import PyramidFlow, PyramidSequence, ScaleWise
from .sequence import FlowSequence, coupling_stack
from .standardize import Standardize

__all__ = [
    "AffineCoupling", "CrossScaleCoupling", "Event", "Flow", "FlowSequence", "GlobalAffine", "HardPermutation",
    "Identity", "OptionalFlow", "PyramidFlow", "PyramidSequence", "ScaleWise", "SoftPermutation", "SplineCoupling",
    "Standardize", "coupling_stack", "fused_kernels",
]  # fmt: skip
