"""Pixel metrics in constant memory: for video, for shards, for data sets whose scores do not fit."""

from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np
from scipy.special import digamma

from semflow._validation import checked
from semflow.errors import ConfigError, ShapeError

from .inputs import Array, Maps
from .regions import split_pixels

__all__ = ["Bounded", "BoundedPixelMetrics", "HistogramAccumulator"]


class Bounded(NamedTuple):
    """A metric of histograms: what it is with every bin counted as one score, and what it is at least and at most.

    Example:
        >>> Bounded(0.93, low=0.92, high=0.94).low
        0.92
    """

    value: float
    low: float
    high: float


class BoundedPixelMetrics(NamedTuple):
    """The four metrics of `PixelMetrics`, each between two bounds that hold whatever the scores in a bin are.

    Example:
        >>> import torch
        >>> accumulator = HistogramAccumulator()
        >>> accumulator.update(torch.tensor([[[0.1, 0.9]]]), torch.tensor([[[0, 1]]]))
        >>> accumulator.compute().auroc
        Bounded(value=1.0, low=1.0, high=1.0)
    """

    auroc: Bounded
    average_precision: Bounded
    f1_max: Bounded
    aupro: Bounded


class HistogramAccumulator:
    """Pixel AUROC, average precision, F1-max and AUPRO over any number of maps, with bounds on their error.

    A score is counted in the bin of its highest bits: as float32, with the sign folded in, the bits of a number order
    as the number does, so bins are as fine as 2^(9 - bits) of the score itself, near zero and far from it. Memory and
    the size of what is merged do not depend on the number of pixels. Every order of the scores within a bin gives a
    metric between `low` and `high`; scores that crowd into a few bins widen the bounds, and more bits narrow them.

    Args:
        bits: 10 to 24; 2^bits bins of 24 bytes each.

    >>> import torch
    >>> metrics = HistogramAccumulator()
    >>> metrics.update(torch.tensor([[0.1, 0.2, 0.7, 0.5]]), torch.tensor([[0, 0, 0, 1]]))
    >>> metrics.compute(fpr_limit=0.5).aupro
    Bounded(value=0.333..., low=0.333..., high=0.333...)
    """

    @checked
    def __init__(self, bits: int = 20) -> None:
        if not 10 <= bits <= 24:
            raise ConfigError(f"bits: expected 10 to 24, got {bits}; 20 takes 24 MiB")
        self.bits = bits
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.normal = np.zeros(2**self.bits, np.int64)
        self.anomalous = np.zeros(2**self.bits, np.int64)
        self.weights = np.zeros(2**self.bits)  # of anomalous pixels: 1 / |region|

    def update(self, scores: Maps, anomaly_masks: Maps) -> None:
        """Add maps with their masks, shaped as in `aupro`; scores count as float32."""
        part = split_pixels(scores, anomaly_masks)
        self.normal += self._count(part.normal)
        self.anomalous += self._count(part.anomalous)
        self.weights += np.bincount(self._bins(part.anomalous), part.weights, minlength=len(self.weights))

    def merge(self, others: Self | Iterable[Self]) -> None:
        """Add the counts of one or several accumulators with as many bits, which stay unchanged.

        Raises:
            ConfigError: If one is of another class or has other bits; then nothing is added.
        """
        accumulators = list(others) if isinstance(others, Iterable) else [others]
        for other in accumulators:
            if not isinstance(other, HistogramAccumulator) or other.bits != self.bits:
                raise ConfigError(f"others must be histograms of {self.bits} bits, but got {other!r}")
        for other in accumulators:
            self.normal += other.normal
            self.anomalous += other.anomalous
            self.weights += other.weights

    def compute(self, fpr_limit: float = 0.3) -> BoundedPixelMetrics:
        """The metrics of everything seen since the last reset, AUPRO up to a false-positive rate of `fpr_limit`.

        Raises:
            ShapeError: no normal or no anomalous pixel has been seen.
            ConfigError: `fpr_limit` is not in (0, 1].
        """
        if not 0 < fpr_limit <= 1:
            raise ConfigError(
                f"fpr_limit: expected a rate above 0 and at most 1, got {fpr_limit}; the usual one is 0.3"
            )
        filled = np.flatnonzero(self.normal + self.anomalous)[::-1]  # from the highest score down
        n, m, w = self.normal[filled], self.anomalous[filled], self.weights[filled]
        if not n.sum() or not m.sum():
            raise ShapeError(
                f"anomaly_masks: expected at least one normal (0) and one anomalous (1) pixel, got {n.sum()} normal "
                f"and {m.sum()} anomalous; no ranking metric is defined without both"
            )
        counts = _Counts(n, m, w, np.cumsum(n) - n, np.cumsum(m) - m)
        return BoundedPixelMetrics(
            _auroc(counts), _average_precision(counts), _f1_max(counts), _aupro(counts, fpr_limit)
        )

    def _count(self, scores: Array) -> Array:
        return np.bincount(self._bins(scores), minlength=2**self.bits)

    def _bins(self, scores: Array) -> Array:
        # Adding zero makes -0 a 0. Negative numbers order backwards by their bits, and below the others.
        words = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)
        words ^= np.where(words >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
        return (words >> np.uint32(32 - self.bits)).astype(np.int64)

    def __repr__(self) -> str:
        return f"HistogramAccumulator(bits={self.bits}, {self.normal.sum() + self.anomalous.sum()} pixels)"


class _Counts(NamedTuple):
    """Bins from the highest score down: normal and anomalous pixels, region weights, and what lies above each bin."""

    n: Array
    m: Array
    w: Array
    n_above: Array
    m_above: Array


def _auroc(c: _Counts) -> Bounded:
    # Pairs of one bin count for a half; they may all be right, or all wrong.
    pairs = float(c.n.sum()) * float(c.m.sum())
    inside = float(np.dot(c.n.astype(float), c.m.astype(float))) / pairs
    above = float(np.dot(c.m.astype(float), c.n_above.astype(float))) / pairs
    return Bounded(1 - above - inside / 2, 1 - above - inside, 1 - above)


def _f1(found: Array, alarms: Array, anomalous: int) -> Array:
    f1: Array = 2 * found / (anomalous + found + alarms)
    return f1


def _f1_max(c: _Counts) -> Bounded:
    # A threshold within a bin finds at most all of its anomalous pixels and raises at least no alarm more.
    total = int(c.m.sum())
    value = float(_f1(c.m_above + c.m, c.n_above + c.n, total).max())
    return Bounded(value, value, float(_f1(c.m_above + c.m, c.n_above, total).max()))


def _average_precision(c: _Counts) -> Bounded:
    """Of a bin all pixels come at once (the value); the anomalous ones last and apart; or first and at once."""
    has = c.m > 0
    n, m, n_above, m_above = (x[has].astype(float) for x in (c.n, c.m, c.n_above, c.m_above))

    def ordered(alarms: Array) -> Array:
        # sum_j (F + j) / (F + j + A) over j = 1 ... m, as m - A (psi(F + m + A + 1) - psi(F + A + 1))
        hits: Array = m - alarms * (digamma(m_above + m + alarms + 1) - digamma(m_above + alarms + 1))
        return hits

    tied = m * (m_above + m) / (m_above + m + n_above + n)
    best = m * (m_above + m) / (m_above + m + n_above)
    total = m.sum()
    return Bounded(*(float(each.sum() / total) for each in (tied, ordered(n_above + n), best)))


def _aupro(c: _Counts, fpr_limit: float) -> Bounded:
    # The formula of `aupro` with a bin for a tie. A pixel's step lies somewhere on its bin's ramp.
    limit = fpr_limit * float(c.n.sum())
    early, late = np.maximum(0, limit - c.n_above), np.maximum(0, limit - c.n_above - c.n)
    ramp = np.clip(limit - c.n_above, 0, c.n)
    tied = late + ramp**2 / (2 * np.maximum(c.n, 1))
    total = float(c.w.sum()) * limit
    return Bounded(*(min(1.0, float(np.dot(c.w, area)) / total) for area in (tied, late, early)))
