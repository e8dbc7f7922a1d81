"""Training, evaluation and run directories of detectors."""

from .choice import choose_flow, held_for_choice, optional_flows
from .config import TrainingConfig
from .distributed import Processes
from .evaluation import Evaluation, ImageResult, check_labels, evaluate, results, summarize
from .fitting import fit
from .holdout import automatic_calibration, automatic_count, calibrate, hold_out
from .launch import launched_processes
from .refitting import refit

__all__ = [
    "Evaluation", "ImageResult", "Processes", "TrainingConfig", "automatic_calibration", "automatic_count",
    "calibrate", "check_labels",
    "choose_flow", "evaluate", "fit", "held_for_choice", "hold_out", "launched_processes", "optional_flows", "refit",
    "results", "summarize",
]  # fmt: skip
