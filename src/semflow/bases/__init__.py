"""Base distributions: `base.log_prob(z, statistics)` per location."""

from .semantic import Base, SemanticAware, StandardNormal

__all__ = ["Base", "SemanticAware", "StandardNormal"]
