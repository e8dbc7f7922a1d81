"""Training, evaluation and run directories of detectors."""

from .checkpoint import load_into, read_config, save_model
from .config import TrainingConfig
from .distributed import Processes
from .evaluation import Evaluation, ImageResult, check_labels, evaluate, results, summarize
from .fitting import fit
from .holdout import automatic_count, calibrate, hold_out
from .launch import launched_processes

__all__ = [
    "Evaluation",
    "ImageResult",
    "Processes",
    "TrainingConfig",
    "automatic_count",
    "calibrate",
    "check_labels",
    "evaluate",
    "fit",
    "hold_out",
    "launched_processes",
    "load_into",
    "read_config",
    "results",
    "save_model",
    "summarize",
]
