"""Metrics over a data set that comes in batches, or in shards of several processes.

The methods are those of a torchmetrics metric: `update`, `compute`, `reset`, `merge`. What torchmetrics does by
itself is a call here: over processes, gather the accumulators, which can be pickled, and merge them.

    shards = [None] * world_size
    torch.distributed.all_gather_object(shards, metrics)
    everything = PixelAccumulator()
    everything.merge(shards)

Not there: `forward`, as a batch need not hold both kinds and has no metric then; and the base class, so a
`MetricCollection` and Lightning's `self.log(name, metric)` do not take them. In Lightning, call `update` in
`validation_step`, and `self.log_dict(metrics.compute()._asdict())` and `metrics.reset()` in `on_validation_epoch_end`.
"""

from collections.abc import Iterable
from typing import Any, Generic, Self, TypeVar

import numpy as np

from semflow.errors import ConfigError

from .inputs import Array, Maps, Values
from .ranking import ImageMetrics, rank, split
from .regions import PixelMetrics, PixelSplit, evaluate_pixels, split_pixels

__all__ = ["ImageAccumulator", "PixelAccumulator"]

Part = TypeVar("Part")


class _Accumulator(Generic[Part]):
    """Keeps the scores of every batch, on the CPU; what is computed does not depend on how they were batched."""

    def __init__(self) -> None:
        self._parts: list[Part] = []

    def reset(self) -> None:
        """Forget everything."""
        self._parts.clear()

    def merge(self, others: Self | Iterable[Self]) -> None:
        """Add the data of one or several accumulators of this class, which stay unchanged.

        The result does not depend on the order.

        Raises:
            ConfigError: If one is of another class; then nothing is added.
        """
        accumulators: list[Any] = list(others) if isinstance(others, Iterable) else [others]
        for other in accumulators:
            if not isinstance(other, type(self)):
                raise ConfigError(f"others must be of class {type(self).__name__}, but got {type(other).__name__}")
        self._parts.extend([part for other in accumulators for part in other._parts])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._parts)} updates)"


class ImageAccumulator(_Accumulator[tuple[Array, Array]]):
    """Image AUROC, average precision and F1-max over batches.

    >>> import torch
    >>> metrics = ImageAccumulator()
    >>> metrics.update(torch.tensor([0.1, 0.4]), torch.tensor([0, 0]))
    >>> metrics.update(torch.tensor([0.4, 0.8]), torch.tensor([1, 1]))
    >>> metrics.compute().auroc
    0.875
    """

    def update(self, scores: Values, labels: Values) -> None:
        """Add a batch: scores and labels (1 anomalous, 0 normal) of one shape, commonly (B,)."""
        self._parts.append(split(scores, labels))

    def compute(self) -> ImageMetrics:
        """The metrics of everything seen since the last reset; ShapeError without a normal and an anomalous image."""
        normal = np.concatenate([np.empty(0, np.bool_), *(part[0] for part in self._parts)])
        anomalous = np.concatenate([np.empty(0, np.bool_), *(part[1] for part in self._parts)])
        return rank(np.sort(normal), np.sort(anomalous)).image_metrics()


class PixelAccumulator(_Accumulator[PixelSplit]):
    """Pixel AUROC, average precision, F1-max and AUPRO over batches.

    Regions are labelled as maps come in; what is kept is the scores, 4 bytes a pixel, and a weight for anomalous ones.

    >>> import torch
    >>> metrics = PixelAccumulator()
    >>> metrics.update(torch.tensor([[0.1, 0.2, 0.7, 0.5]]), torch.tensor([[0, 0, 0, 1]]))
    >>> metrics.compute(fpr_limit=0.5)
    PixelMetrics(auroc=0.666..., average_precision=0.5, f1_max=0.666..., aupro=0.333...)
    """

    def update(self, scores: Maps, anomaly_masks: Maps) -> None:
        """Add maps with their masks, shaped as in `aupro`; a batch of normal images alone is as good as any other."""
        self._parts.append(split_pixels(scores, anomaly_masks))

    def compute(self, fpr_limit: float = 0.3) -> PixelMetrics:
        """The metrics of everything seen since the last reset; ShapeError without a normal and an anomalous pixel."""
        return evaluate_pixels(self._parts, fpr_limit)
