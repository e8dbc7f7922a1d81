"""Detectors: features, flows, a base and a score, trained, calibrated and kept in a run directory."""

from .checkpoint import load_into, read_config, save_model
from .detector import Detector, Latents, Prediction
from .evaluation import evaluate
from .plan import Training
from .scoring import Scorer
from .training import fit

__all__ = [
    "Detector",
    "Latents",
    "Prediction",
    "Scorer",
    "Training",
    "evaluate",
    "fit",
    "load_into",
    "read_config",
    "save_model",
]
