"""Models that die or run out of memory when they are used, in a module that workers can import."""

import os
import signal
from pathlib import Path

import torch
from torch import Tensor

from semflow.detectors import Detector, Prediction
from semflow.recipes import load

__all__ = ["load_dying", "load_full"]


class Dying:
    """Passes on what the detector says, but for the first time that `mark` is not there."""

    def __init__(self, detector: Detector, mark: Path) -> None:
        self.detector, self.mark, self.device = detector, mark, detector.device

    def predict(self, images: Tensor) -> Prediction:
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:
            return self.detector.predict(images)
        os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("not killed")


def load_full(run: Path) -> Detector:
    detector = load(run)
    detector.features.forward = full
    return detector


def full(images: Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def load_dying(run: Path, mark: Path) -> Dying:
    return Dying(load(run), mark)
