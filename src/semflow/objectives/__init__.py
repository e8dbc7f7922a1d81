"""Training objectives: the one place where log p(z) and log_det are added."""

from .objective import PRESETS, Objective, Terms, log_likelihood, mean_over_locations, means_over_locations

__all__ = ["PRESETS", "Objective", "Terms", "log_likelihood", "mean_over_locations", "means_over_locations"]
