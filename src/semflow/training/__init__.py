"""Training, evaluation and run directories of detectors."""

from .callbacks import Callback, RunStart
from .choice import choose_flow, optional_flows
from .config import TrainingConfig
from .distributed import Processes
from .evaluated import Evaluation, ImageResult, summarize
from .evaluation import check_labels, evaluate, evaluate_categories, results
from .fitting import fit
from .holdout import automatic_calibration, automatic_count, calibrate, hold_out
from .launch import launched_processes
from .loggers import LOGGERS, Logger, MLflow, TensorBoard, WandB
from .refitting import refit

__all__ = [
    "LOGGERS", "Callback", "Evaluation", "ImageResult", "Logger", "MLflow", "Processes", "RunStart", "TensorBoard",
    "TrainingConfig", "WandB", "automatic_calibration", "automatic_count", "calibrate", "check_labels", "choose_flow",
    "evaluate", "evaluate_categories", "fit", "hold_out", "launched_processes", "optional_flows",
    "refit", "results", "summarize",
]  # fmt: skip
