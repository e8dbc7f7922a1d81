"""Detectors: features, flows, a base, a score and its calibration."""

from .calibration import Calibration, Decision
from .conformal import conformal_p_values, conformal_threshold, default_rate, images_needed, rate_interval
from .detector import Detector
from .drift import DriftTest
from .false_alarms import significant_regions
from .inputs import location_masks
from .interface import NormalBatch, Prediction, Predictor, Provenance
from .likelihood import Latents, LikelihoodModel
from .scoring import STANDARD_NORMAL_PEAK, Scorer

__all__ = [
    "STANDARD_NORMAL_PEAK", "Calibration", "Decision", "Detector", "DriftTest", "Latents", "LikelihoodModel",
    "NormalBatch", "Prediction", "Predictor", "Provenance", "Scorer", "conformal_p_values", "conformal_threshold",
    "default_rate", "images_needed", "location_masks", "rate_interval", "significant_regions",
]  # fmt: skip
