"""Inputs and outputs of detectors."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .provenance import Provenance

__all__ = ["Gather", "ImageBatch", "Prediction", "Predictor"]

ImageBatch = Tensor | tuple[Tensor, list[Tensor]]
"""Images (B, 3, H, W) in [0, 1], alone or with their feature maps."""
Gather = Callable[[Iterable[Any]], Iterable[Any]]
"""Collects the results for each batch from all processes, see `Processes.gather`."""


class Prediction(NamedTuple):
    """Predictions for a batch of images.

    The last three are None if the detector is not calibrated, see `Calibration`.

    Args:
        score: (B,), higher is more anomalous.
        anomaly_map: (B, H, W) at the size of the images.
        variance: one map (B, H_k, W_k) per scale; empty if the base has no statistics.
        p_value: (B,) float64, the probability that a normal image has such a score.
        is_anomalous: (B,) bool, true if the p-value is at most the false-alarm rate.
        mask: (B, H, W) bool, true where the anomaly map is above its threshold.

    Example:
        >>> prediction = Prediction(torch.tensor([0.3, 2.1]), torch.rand(2, 64, 64), ())
        >>> prediction.score.argmax().item(), prediction.is_anomalous is None
        (1, True)
    """

    score: Tensor
    anomaly_map: Tensor
    variance: tuple[Tensor, ...]
    p_value: Tensor | None = None
    is_anomalous: Tensor | None = None
    mask: Tensor | None = None


class Predictor(Protocol):
    """Interface that evaluation and the command line need: a `Detector` or a `semflow.app.export.ExportedDetector`."""

    @property
    def provenance(self) -> Provenance:
        """Origin of the detector, with the side of its images in pixels."""
        ...

    @property
    def map_range(self) -> tuple[float, float]:
        """Color range for anomaly maps."""
        ...

    @property
    def localizes(self) -> bool:
        """True if the anomaly map tells where."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the images."""
        ...

    @property
    def false_alarm_rate(self) -> float | None:
        """False-alarm rate of decisions, or None without calibration."""
        ...

    def predict(self, images: Tensor) -> Prediction:
        """Predict images (B, 3, S, S) in [0, 1]."""
        ...
