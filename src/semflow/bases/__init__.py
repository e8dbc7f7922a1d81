"""Base distributions: `base.log_prob(z, statistics)` per location."""

from .choice import BaseAndHead, Variance, base_and_head
from .semantic import Base, SemanticAware, StandardNormal

__all__ = ["Base", "BaseAndHead", "SemanticAware", "StandardNormal", "Variance", "base_and_head"]
