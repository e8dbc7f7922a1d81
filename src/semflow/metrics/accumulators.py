"""Metrics over a dataset in batches, or in shards of several processes.

The methods follow torchmetrics: `update`, `compute`, `reset`. To synchronize processes, gather the accumulators, for
example with `torch.distributed.all_gather_object`, and `merge` them. They are not subclasses of `torchmetrics.Metric`
and have no `forward`, because the metrics of a batch without both kinds of images are undefined. In Lightning, call
`update` in `validation_step`, and `self.log_dict(metrics.compute()._asdict())` and `metrics.reset()` in
`on_validation_epoch_end`.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Generic, Self, TypeVar

import numpy as np

from semflow.errors import ConfigError

from .decisions import CalibrationError, calibration_error, count_decisions, f1_of_counts
from .inputs import Array, Maps, Values, as_scores
from .ranking import ImageMetrics, rank, split
from .regions import PixelMetrics, PixelSplit, evaluate_pixels, overlap_area, split_pixels
from .saturated import Defect, split_defects

Part = TypeVar("Part")


class _Accumulator(Generic[Part]):
    """Scores of all batches, kept on the CPU; the result does not depend on the division into batches."""

    def __init__(self) -> None:
        self._parts: list[Part] = []

    def reset(self) -> None:
        """Remove all data."""
        self._parts.clear()

    def merge(self, others: Self | Iterable[Self]) -> None:
        """Add the data of one or several accumulators of this class, in any order; they stay unchanged."""
        accumulators: list[Any] = list(others) if isinstance(others, Iterable) else [others]
        for other in accumulators:
            if not isinstance(other, type(self)):
                raise ConfigError(f"others must be of class {type(self).__name__}, but got {type(other).__name__}")
        self._parts.extend([part for other in accumulators for part in other._parts])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._parts)} updates)"


class ImageAccumulator(_Accumulator[tuple[Array, Array]]):
    """Image AUROC, average precision and F1-max over batches.

    Example:
        >>> import torch
        >>> metrics = ImageAccumulator()
        >>> metrics.update(torch.tensor([0.1, 0.4]), torch.tensor([0, 0]))
        >>> metrics.update(torch.tensor([0.4, 0.8]), torch.tensor([1, 1]))
        >>> metrics.compute().auroc
        0.875
    """

    def update(self, scores: Values, labels: Values) -> None:
        """Add a batch of scores with labels (1 anomalous, 0 normal) of the same shape, usually (B,)."""
        self._parts.append(split(scores, labels))

    def compute(self) -> ImageMetrics:
        """Compute the metrics of all data since the last reset; raise ShapeError unless both kinds of images exist."""
        normal = np.concatenate([np.empty(0, np.bool_), *(part[0] for part in self._parts)])
        anomalous = np.concatenate([np.empty(0, np.bool_), *(part[1] for part in self._parts)])
        return rank(np.sort(normal), np.sort(anomalous)).image_metrics()


class PixelAccumulator(_Accumulator[PixelSplit]):
    """Pixel AUROC, average precision, F1-max and AUPRO over batches.

    Each update finds the anomalous regions; the accumulator keeps the scores (4 bytes per pixel) and a weight for each
    anomalous pixel.

    Example:
        >>> import torch
        >>> metrics = PixelAccumulator()
        >>> metrics.update(torch.tensor([[0.1, 0.2, 0.7, 0.5]]), torch.tensor([[0, 0, 0, 1]]))
        >>> metrics.compute(fpr_limit=0.5)
        PixelMetrics(auroc=0.666..., average_precision=0.5, f1_max=0.666..., aupro=0.333...)
    """

    def update(self, scores: Maps, anomaly_masks: Maps) -> None:
        """Add maps with their masks, shaped as in `aupro`; a batch may contain only normal images."""
        self._parts.append(split_pixels(scores, anomaly_masks))

    def compute(self, fpr_limit: float = 0.3) -> PixelMetrics:
        """Compute the metrics of all data since the last reset; raise ShapeError unless both kinds of pixels exist."""
        return evaluate_pixels(self._parts, fpr_limit)


class SproAccumulator(_Accumulator[PixelSplit]):
    """sPRO over batches.

    Example:
        >>> metric = SproAccumulator()
        >>> metric.update([[[0.1, 0.2, 0.9, 0.0]]], [[Defect([[0, 0, 1, 1]], saturation=1)]])
        >>> metric.compute()
        1.0
    """

    def update(self, scores: Maps, defects: Sequence[Sequence[Defect]], inside: Maps | None = None) -> None:
        """Add maps with their defects, as in `spro`; a batch may contain only normal images."""
        self._parts.append(split_defects(scores, defects, inside))

    def compute(self, fpr_limit: float = 0.05) -> float:
        """Compute sPRO of all data since the last reset; raise ShapeError unless both kinds of pixels exist."""
        return overlap_area(self._parts, fpr_limit)


class F1Accumulator(_Accumulator[tuple[int, int, int]]):
    """F1 of decisions over batches, in constant memory.

    Example:
        >>> metric = F1Accumulator()
        >>> metric.update([True, False], [1, 1])
        >>> metric.update([True, False], [1, 0])
        >>> metric.compute()
        0.8
    """

    def update(self, decisions: Values, labels: Values) -> None:
        """Add decisions with labels of the same shape, as in `f1`."""
        counts = count_decisions(decisions, labels)
        self._parts = [tuple(map(sum, zip(counts, *self._parts, strict=True)))]  # type: ignore[list-item]

    def compute(self) -> float:
        """Compute F1 of all data since the last reset; raise ShapeError without an anomalous entry."""
        return f1_of_counts(*map(sum, zip((0, 0, 0), *self._parts, strict=True)))


class CalibrationAccumulator(_Accumulator[Array]):
    """Calibration error of p-values over batches.

    Example:
        >>> metric = CalibrationAccumulator()
        >>> metric.update([0.25])
        >>> metric.update([0.75])
        >>> metric.compute().distance
        0.25
    """

    def update(self, p_values: Values) -> None:
        """Add p-values of normal images, of any shape."""
        self._parts.append(as_scores("p_values", p_values).flatten())

    def compute(self) -> CalibrationError:
        """Compute the errors of all data since the last reset; raise ShapeError without p-values."""
        return calibration_error(np.concatenate([np.empty(0), *self._parts]))
