"""What scores images: a detector, or whatever stands in its place."""

from typing import Protocol

import torch
from torch import Tensor

from .detector import Prediction
from .provenance import Provenance

__all__ = ["Predictor"]


class Predictor(Protocol):
    """What `results` and the command line need: a `Detector`, or a `semflow.app.export.ExportedDetector`."""

    @property
    def provenance(self) -> Provenance:
        """How the detector was made, with the side of its images in pixels."""
        ...

    @property
    def map_range(self) -> tuple[float, float]:
        """The colour range for anomaly maps."""
        ...

    @property
    def localizes(self) -> bool:
        """Whether the anomaly map says where."""
        ...

    @property
    def device(self) -> torch.device:
        """Where images are to be."""
        ...

    @property
    def false_alarm_rate(self) -> float | None:
        """The rate that decisions are made at; None where it is not calibrated."""
        ...

    def predict(self, images: Tensor) -> Prediction:
        """Images (B, 3, S, S) in [0, 1] to scores, maps and decisions."""
        ...
