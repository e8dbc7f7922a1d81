"""Scoring on a processor that others use too: two halves of a batch at a time, and threads that do not spin for long.

Whenever an operator has finished on one core, its threads wait for the others by spinning, so that a busy machine loses
the time of several cores. With short waits the cores do the work of the other half meanwhile.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:  # importing this module imports no torch
    from torch import Tensor

    from semflow.detectors import Prediction, Predictor

WAITS = {"GOMP_SPINCOUNT": "5000", "KMP_BLOCKTIME": "1"}  # of the two OpenMP libraries: a fraction of a millisecond


def shorten_waits() -> None:
    """Set the environment variables of OpenMP, which are read when torch is imported, unless the user has set some."""
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        for name, value in WAITS.items():
            os.environ.setdefault(name, value)


def in_halves(detector: "Predictor") -> "Predictor":
    """Return a detector that predicts the halves of a batch on two threads, if it runs on several cores."""
    import torch

    from semflow.detectors import Detector

    spins = os.environ.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE"
    several = detector.device.type == "cpu" and torch.get_num_threads() > 1 and not spins
    return cast("Predictor", _Halves(detector)) if several and isinstance(detector, Detector) else detector


class _Halves:
    def __init__(self, detector: "Predictor") -> None:
        self._detector = detector
        self._other = ThreadPoolExecutor(1)  # one thread for all batches, since each has its own of OpenMP

    def __getattr__(self, name: str) -> Any:
        return getattr(self._detector, name)

    def predict(self, images: "Tensor") -> "Prediction":
        half = len(images) // 2
        if not half:
            return self._detector.predict(images)
        other = self._other.submit(self._detector.predict, images[half:])
        try:
            first = self._detector.predict(images[:half])
        finally:
            second = other.result()
        return type(first)(*map(_joined, zip(first, second, strict=True)))


def _joined(pair: tuple[Any, Any]) -> Any:
    import torch

    if isinstance(pair[0], tuple):
        return tuple(map(_joined, zip(*pair, strict=True)))
    return None if pair[0] is None else torch.cat(pair)
