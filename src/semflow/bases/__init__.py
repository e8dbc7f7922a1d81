"""Base distributions with `base.log_prob(z, statistics)` at every location."""

from . import divergences as divergences  # registers them with torch
from .choice import BaseAndHead, Variance, base_and_head
from .distributions import SemanticNormal, variance_distribution
from .fitted import Accumulator, FittedBase
from .gallery import Gallery, GalleryMaps
from .memory import Memory
from .position import PositionGaussian
from .position_moments import PositionMoments
from .reweighting import reweighted_distance
from .semantic import Base, SemanticGaussian, StandardNormal
from .stored import Stored, StoredLatents, share_limit

__all__ = [
    "Accumulator", "Base", "BaseAndHead", "FittedBase", "Gallery", "GalleryMaps", "Memory", "PositionGaussian",
    "PositionMoments", "SemanticGaussian", "SemanticNormal", "StandardNormal", "Stored", "StoredLatents", "Variance",
    "base_and_head", "reweighted_distance", "share_limit", "variance_distribution",
]  # fmt: skip
