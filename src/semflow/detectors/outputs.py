"""What goes into a detector and comes out: batches, and what is said of a batch of images."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Gather", "ImageBatch", "Prediction"]

ImageBatch = Tensor | tuple[Tensor, list[Tensor]]
"""Images (B, 3, H, W) in [0, 1], alone or with their feature maps."""
Gather = Callable[[Iterable[Any]], Iterable[Any]]
"""What was made of each batch, brought together where several processes hold the batches; see `Processes.gather`."""


class Prediction(NamedTuple):
    """What a detector says of a batch.

    Args:
        score: (B,), higher is more anomalous.
        anomaly_map: (B, H, W) at the size of the images.
        variance: one map (B, H_k, W_k) a scale; empty where the base has no statistics.
        p_value: (B,) float64, how often a normal image scores that high; this and the next two are None where nothing
            has been calibrated, see `Calibration`.
        is_anomalous: (B,) bool, the p-value is at most the false-alarm rate.
        mask: (B, H, W) bool, where the anomaly map is higher than a normal image's hardly ever gets anywhere.

    Example:
        >>> import torch
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
