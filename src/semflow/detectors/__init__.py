"""Detectors: features, flows, a base and a score, trained, calibrated and kept in a run directory."""

from .calibration import Calibration, Decision
from .checkpoint import load_into, read_config, save_model
from .conformal import (
    conformal_p_values,
    conformal_threshold,
    default_rate,
    images_needed,
    rate_interval,
)
from .detector import Detector, Latents, Prediction
from .distributed import Processes
from .evaluation import Evaluation, ImageResult, check_labels, evaluate, results, summarize
from .holdout import automatic_count, calibrate, hold_out
from .launch import launched_processes
from .plan import Training
from .predictor import Predictor
from .scoring import STANDARD_NORMAL_PEAK, Scorer
from .training import fit

__all__ = [
    "STANDARD_NORMAL_PEAK",
    "Calibration",
    "Decision",
    "Detector",
    "Evaluation",
    "ImageResult",
    "Latents",
    "Prediction",
    "Predictor",
    "Processes",
    "Scorer",
    "Training",
    "automatic_count",
    "calibrate",
    "check_labels",
    "conformal_p_values",
    "conformal_threshold",
    "default_rate",
    "evaluate",
    "fit",
    "hold_out",
    "images_needed",
    "launched_processes",
    "load_into",
    "rate_interval",
    "read_config",
    "results",
    "save_model",
    "summarize",
]
