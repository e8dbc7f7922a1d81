"""Training objectives, which add log p(z) and log_det."""

from .objective import PRESETS, Objective, Terms, log_likelihood, mean_over_locations, means_over_locations

__all__ = ["PRESETS", "Objective", "Terms", "log_likelihood", "mean_over_locations", "means_over_locations"]
