"""Detectors: features, flows, a base and a score, trained, calibrated and kept in a run directory."""

from .checkpoint import load_into, read_config, save_model
from .detector import Detector, Latents, Prediction
from .evaluation import Evaluation, ImageResult, check_labels, evaluate, results, summarize
from .plan import Training
from .predictor import Predictor
from .scoring import STANDARD_NORMAL_PEAK, Scorer
from .training import fit

__all__ = [
    "STANDARD_NORMAL_PEAK",
    "Detector",
    "Evaluation",
    "ImageResult",
    "Latents",
    "Prediction",
    "Predictor",
    "Scorer",
    "Training",
    "check_labels",
    "evaluate",
    "fit",
    "load_into",
    "read_config",
    "results",
    "save_model",
    "summarize",
]
