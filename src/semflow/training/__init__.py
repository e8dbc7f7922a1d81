"""Training, evaluation and run directories of detectors."""

from .config import TrainingConfig
from .distributed import Processes
from .evaluation import Evaluation, ImageResult, check_labels, evaluate, results, summarize
from .fitting import fit
from .holdout import automatic_count, calibrate, hold_out
from .launch import launched_processes
from .settling import refit

__all__ = [
    "Evaluation", "ImageResult", "Processes", "TrainingConfig", "automatic_count", "calibrate", "check_labels",
    "evaluate", "fit", "hold_out", "launched_processes", "refit", "results", "summarize",
]  # fmt: skip
