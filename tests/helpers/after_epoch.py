"""A callback of `fit` from a function."""

from collections.abc import Callable, Mapping
from typing import Any

from semflow.detectors import Detector
from semflow.training import Callback


class AfterEpoch(Callback):
    """Calls a function with the detector and the number of finished epochs."""

    def __init__(self, function: Callable[[Detector, int], object]) -> None:
        self.function = function

    def epoch(self, detector: Detector, record: Mapping[str, Any]) -> None:
        self.function(detector, record["epoch"])
