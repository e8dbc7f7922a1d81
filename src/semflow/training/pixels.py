"""Pixel metrics in bounded memory."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from semflow.metrics import BoundedPixelMetrics, HistogramAccumulator, PixelMetrics
from semflow.metrics.regions import PixelSplit, evaluate_pixels, split_pixels

EXACT = 2**26
"""Pixels whose scores are kept, in 256 MiB."""
BITS = 22
TOLERANCE = 1e-3


class Pixels:
    """Pixel metrics: exact up to `EXACT` pixels, beyond them from a histogram of 2^22 bins.

    The result does not depend on the order of the maps, nor on how they are divided among processes.

    Example:
        >>> import torch
        >>> pixels = Pixels()
        >>> pixels.update(torch.tensor([[0.1, 0.2, 0.7]]), torch.tensor([[0, 0, 1]]))
        >>> pixels.compute().aupro
        1.0
    """

    def __init__(self) -> None:
        self._parts: list[PixelSplit] = []
        self._count = 0
        self._histogram: HistogramAccumulator | None = None
        self._computed: dict[float, PixelMetrics | BoundedPixelMetrics] = {}  # by the limit, until pixels are added

    def update(self, anomaly_map: Tensor, anomaly_mask: Tensor) -> None:
        """Add a map with its mask; outside a region of interest, where the map is -inf, pixels do not count."""
        self.add(split_pixels(anomaly_map, anomaly_mask, anomaly_map > -torch.inf))

    def add(self, part: PixelSplit) -> None:
        """Add pixels that are split already."""
        self._add([part])

    def merge(self, other: "Pixels") -> None:
        """Add the pixels of another process."""
        if other._histogram is not None:
            self._histogram = self._histogram or HistogramAccumulator(BITS)
            self._histogram.merge(other._histogram)
        self._add(other._parts)

    def compute(self, fpr_limit: float = 0.3, warned: Sequence[str] = ("auroc", "aupro")) -> PixelMetrics:
        """Return the metrics; warn if the histogram leaves more than 0.001 of those `warned` of open."""
        found = self._computed.get(fpr_limit)
        if found is None:
            histogram = self._histogram
            found = evaluate_pixels(self._parts, fpr_limit) if histogram is None else histogram.compute(fpr_limit)
            self._computed[fpr_limit] = found
        if isinstance(found, PixelMetrics):
            return found
        width = max(getattr(found, name).high - getattr(found, name).low for name in warned)
        if width > TOLERANCE:
            warnings.warn(
                f"pixel metrics are known to {width:.1g} only, because the scores of so many pixels are rounded; "
                "evaluate fewer images",
                stacklevel=2,
            )
        return PixelMetrics(*(bounded.value for bounded in found))

    def _add(self, parts: Sequence[PixelSplit]) -> None:
        self._computed.clear()
        self._parts += parts
        self._count += sum(len(part.normal) + len(part.anomalous) for part in parts)
        if self._histogram is None and self._count > EXACT:
            self._histogram = HistogramAccumulator(BITS)
        if self._histogram is not None:
            for part in self._parts:
                self._histogram.add(part)
            self._parts.clear()
