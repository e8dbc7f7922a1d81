"""Pixel metrics in constant memory, for datasets whose scores do not fit into memory."""

from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np
import scipy

from semflow._validation import checked
from semflow.errors import ConfigError

from .inputs import Array, Maps
from .ranking import check_both_kinds
from .regions import PixelSplit, check_fpr_limit, split_pixels


class Bounded(NamedTuple):
    """A metric of histograms: its value if each bin counts as one score, with lower and upper bounds.

    Example:
        >>> Bounded(0.93, low=0.92, high=0.94).low
        0.92
    """

    value: float
    low: float
    high: float


class BoundedPixelMetrics(NamedTuple):
    """The four metrics of `PixelMetrics` with bounds that hold for any scores within the bins.

    Example:
        >>> BoundedPixelMetrics(*[Bounded(0.93, low=0.92, high=0.94)] * 4).aupro.high
        0.94
    """

    auroc: Bounded
    average_precision: Bounded
    f1_max: Bounded
    aupro: Bounded


class HistogramAccumulator:
    """Pixel AUROC, average precision, F1-max and AUPRO over any number of maps, with error bounds.

    The highest bits of a score, as float32 with transformed sign, select its bin. These bits have the order of the
    numbers, so the relative width of a bin is 2^(9 - bits), near zero and far from it. Memory does not depend on the
    number of pixels. Any order of the scores within a bin gives a metric between `low` and `high`; more bits narrow
    these bounds.

    Args:
        bits: 10 to 24; there are 2^bits bins of 24 bytes each.

    Example:
        >>> import torch
        >>> metrics = HistogramAccumulator()
        >>> metrics.update(torch.tensor([[0.1, 0.2, 0.7, 0.5]]), torch.tensor([[0, 0, 0, 1]]))
        >>> metrics.compute(fpr_limit=0.5).aupro
        Bounded(value=0.333..., low=0.333..., high=0.333...)
    """

    @checked
    def __init__(self, bits: int = 20) -> None:
        if not 10 <= bits <= 24:
            raise ConfigError(f"bits must be 10 to 24, but got {bits}; 20 uses 24 MiB")
        self.bits = bits
        self.reset()

    def reset(self) -> None:
        """Remove all data."""
        self.normal = np.zeros(2**self.bits, np.int64)
        self.anomalous = np.zeros(2**self.bits, np.int64)
        self.weights = np.zeros(2**self.bits)  # of anomalous pixels: 1 / |region|

    def update(self, scores: Maps, anomaly_masks: Maps) -> None:
        """Add maps with their masks, shaped as in `aupro`; scores are rounded to float32."""
        self.add(split_pixels(scores, anomaly_masks))

    def add(self, part: PixelSplit) -> None:
        """Add pixels that are split already."""
        bins, count = self._bins(part.anomalous), 2**self.bits
        self.normal += np.bincount(self._bins(part.normal), minlength=count)
        self.anomalous += np.bincount(bins, minlength=count)
        self.weights += np.bincount(bins, part.weights, minlength=count)

    def merge(self, others: Self | Iterable[Self]) -> None:
        """Add the counts of one or several accumulators with as many bits, which stay unchanged."""
        accumulators = list(others) if isinstance(others, Iterable) else [others]
        for other in accumulators:
            if not isinstance(other, HistogramAccumulator) or other.bits != self.bits:
                raise ConfigError(f"others must be histograms of {self.bits} bits, but got {other!r}")
        for other in accumulators:
            self.normal += other.normal
            self.anomalous += other.anomalous
            self.weights += other.weights

    def compute(self, fpr_limit: float = 0.3) -> BoundedPixelMetrics:
        """Compute the metrics of all data since the last reset, AUPRO up to a false-positive rate of `fpr_limit`."""
        check_fpr_limit(fpr_limit)
        filled = np.flatnonzero(self.normal + self.anomalous)[::-1]  # from the highest score down
        n, m, w = self.normal[filled], self.anomalous[filled], self.weights[filled]
        check_both_kinds(n.sum(), m.sum(), "anomaly_masks")
        c = _Counts(n, m, w, np.cumsum(n) - n, np.cumsum(m) - m)
        return BoundedPixelMetrics(_auroc(c), _average_precision(c), _f1_max(c), _aupro(c, fpr_limit))

    def _bins(self, scores: Array) -> Array:
        # Adding zero turns -0 into 0. The bits of negative numbers have the reverse order and must sort first.
        words = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)
        words ^= np.where(words >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
        return (words >> np.uint32(32 - self.bits)).astype(np.int64)

    def __repr__(self) -> str:
        return f"HistogramAccumulator(bits={self.bits}, {self.normal.sum() + self.anomalous.sum()} pixels)"


class _Counts(NamedTuple):
    """Pixels and region weights of each bin, from the highest score down, and numbers of pixels above it."""

    n: Array
    m: Array
    w: Array
    n_above: Array
    m_above: Array


def _auroc(c: _Counts) -> Bounded:
    # Pairs within a bin count as one half; they may all be correct, or all wrong.
    pairs = float(c.n.sum()) * float(c.m.sum())
    inside = float(np.dot(c.n.astype(float), c.m.astype(float))) / pairs
    above = float(np.dot(c.m.astype(float), c.n_above.astype(float))) / pairs
    return Bounded(1 - above - inside / 2, 1 - above - inside, 1 - above)


def _f1_max(c: _Counts) -> Bounded:
    # A threshold within a bin finds at most all of its anomalous pixels, and adds at least zero false alarms.
    total, found = int(c.m.sum()), c.m_above + c.m
    value, high = (float((2 * found / (total + found + alarms)).max()) for alarms in (c.n_above + c.n, c.n_above))
    return Bounded(value, value, high)


def _average_precision(c: _Counts) -> Bounded:
    """Return the value for ties within bins, and bounds with the anomalous pixels of a bin last, or first and tied."""
    has = c.m > 0
    n, m, n_above, m_above = (x[has].astype(float) for x in (c.n, c.m, c.n_above, c.m_above))
    alarms, found = n_above + n, m_above + m
    # Last: sum_j (F + j) / (F + j + A) over j = 1 ... m, as m - A (psi(F + m + A + 1) - psi(F + A + 1))
    last = m - alarms * (scipy.special.digamma(found + alarms + 1) - scipy.special.digamma(m_above + alarms + 1))
    total = m.sum()
    tied, best = m * found / (found + n_above + n), m * found / (found + n_above)
    return Bounded(*(float(each.sum() / total) for each in (tied, last, best)))


def _aupro(c: _Counts, fpr_limit: float) -> Bounded:
    # The formula of `aupro` with a tie per bin. The exact step of a pixel lies within the ramp of its bin.
    limit = fpr_limit * float(c.n.sum())
    early, late = np.maximum(0, limit - c.n_above), np.maximum(0, limit - c.n_above - c.n)
    ramp = np.clip(limit - c.n_above, 0, c.n)
    tied = late + ramp**2 / (2 * np.maximum(c.n, 1))
    total = float(c.w.sum()) * limit
    return Bounded(*(min(1.0, float(np.dot(c.w, area)) / total) for area in (tied, late, early)))
