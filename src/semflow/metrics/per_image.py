"""AUPIMO: the overlap within each image over the false-positive rate of normal images alone."""

import math
import warnings
from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np

from semflow._validation import checked
from semflow.errors import ConfigError, ShapeError

from .inputs import Array, Maps
from .regions import paired_maps

BOUNDS = (1e-5, 1e-4)


class Aupimo(NamedTuple):
    """AUPIMO of each image, and their mean.

    Attributes:
        mean: The mean over the anomalous images.
        of_images: (B,) float64, in the order of the images; NaN where it is not defined: for normal images.

    Example:
        >>> aupimo([[[0.1, 0.9]], [[0.2, 0.3]]], [[[0, 1]], [[0, 0]]], fpr_bounds=(0.5, 1))
        Aupimo(mean=1.0, of_images=array([ 1., nan]))
    """

    mean: float
    of_images: Array


def aupimo(
    scores: Maps, anomaly_masks: Maps, fpr_bounds: tuple[float, float] = BOUNDS, inside: Maps | None = None
) -> Aupimo:
    """Compute the area under the per-image-overlap curve between two low false-positive rates of normal images.

    At threshold t, the rate F(t) is the mean over the normal images (masks without anomalous pixels) of the fraction
    of the image with s >= t, and the overlap T_i(t) is the fraction of the anomalous pixels of image i with s >= t. The
    points (F, T_i) of all distinct scores, starting at (0, 0) and joined by straight lines, give T_i as a function of
    the rate, and

        AUPIMO_i = 1 / log(b / a) * integral from a to b of T_i(x) d log x,  (a, b) = fpr_bounds

    (Bertoldo et al., "AUPIMO: Redefining Anomaly Localization Benchmarks with High Speed and Low Tolerance", BMVC
    2024). Normal pixels of anomalous images have no part in it. No thresholds are sampled: as in `aupro`, each
    anomalous pixel contributes from its rank among the normal scores, of which only the highest matter.

    With fewer than 1 / a normal pixels, a warning says that rates near a are not resolved: an overlap there needs
    scores above all normal ones.

    Args:
        scores: Anomaly maps, as in `aupro`.
        anomaly_masks: 1 or True where anomalous; the shapes of `scores`.
        fpr_bounds: Lowest and highest false-positive rate, 0 < a < b <= 1.
        inside: 1 or True at the pixels that count, in the shapes of `scores`; None counts all.

    Raises:
        ShapeError: If shapes differ, a score is NaN, a mask has values other than 0 and 1, or there are not both normal
            and anomalous images.
        ConfigError: If `fpr_bounds` are out of range.

    Example:
        >>> aupimo([[[0.1, 0.9]], [[0.2, 0.3]]], [[[0, 1]], [[0, 0]]], fpr_bounds=(0.5, 1)).mean
        1.0
    """
    accumulator = AupimoAccumulator(fpr_bounds)
    accumulator.update(scores, anomaly_masks, inside)
    return accumulator.compute()


class _Pool:
    """Scores of normal images of one size, or of those that can matter."""

    def __init__(self) -> None:
        self.images = 0
        self.parts: list[Array] = []

    def add(self, images: int, parts: list[Array]) -> None:
        self.images += images
        self.parts += parts

    def highest(self, count: int) -> Array:
        """Return the `count` highest scores and those that tie with the last of them."""
        scores = np.concatenate(self.parts)
        return scores if count >= len(scores) else scores[scores >= np.partition(scores, -count)[-count]]


class AupimoAccumulator:
    """AUPIMO over batches.

    Keeps the scores of the normal images and of the anomalous pixels, 4 bytes each.

    Args:
        fpr_bounds: Lowest and highest false-positive rate, see `aupimo`.
        images: Highest number of images that will be added to this and all accumulators that are merged. If given,
            only the scores of normal images that can change the result are kept, about a share `fpr_bounds[1]` of them.

    Example:
        >>> metric = AupimoAccumulator(fpr_bounds=(0.5, 1))
        >>> metric.update([[[0.2, 0.3]]], [[[0, 0]]])
        >>> metric.update([[[0.1, 0.9]]], [[[0, 1]]])
        >>> metric.compute().mean
        1.0
    """

    @checked
    def __init__(self, fpr_bounds: tuple[float, float] = BOUNDS, images: int | None = None) -> None:
        low, high = fpr_bounds
        if not 0 < low < high <= 1:
            raise ConfigError(f"fpr_bounds must be 0 < low < high <= 1, but got {low} and {high}; usual are {BOUNDS}")
        if images is not None and images < 1:
            raise ConfigError(f"images must be at least 1, but got {images}")
        self.fpr_bounds, self.images = (float(low), float(high)), images
        self.reset()

    def reset(self) -> None:
        """Remove all data."""
        self._pools: dict[int, _Pool] = {}
        self._overlaps: list[Array | None] = []  # scores of the anomalous pixels of each image; None if it is normal

    def update(self, scores: Maps, anomaly_masks: Maps, inside: Maps | None = None) -> None:
        """Add maps with their masks, shaped as in `aupro`; a batch may contain only normal images."""
        for values, mask, counted in list(paired_maps(scores, anomaly_masks, inside)):  # all checked before any counts
            if mask.any():
                self._overlaps.append(values[mask if counted is None else mask & counted])
                continue
            self._overlaps.append(None)
            pixels = values.flatten() if counted is None else values[counted]
            if pixels.size:
                self._add(pixels.size, 1, [pixels])

    def merge(self, others: Self | Iterable[Self]) -> None:
        """Add the data of one or several accumulators with these arguments, which stay unchanged."""
        accumulators = list(others) if isinstance(others, Iterable) else [others]
        for other in accumulators:
            if not isinstance(other, AupimoAccumulator) or (other.fpr_bounds, other.images) != (
                self.fpr_bounds, self.images
            ):  # fmt: skip
                raise ConfigError(f"others must be accumulators with the arguments of {self!r}, but got {other!r}")
        added = [(dict(other._pools), list(other._overlaps)) for other in accumulators]
        for pools, overlaps in added:
            self._overlaps += overlaps
            for size, pool in pools.items():
                self._add(size, pool.images, list(pool.parts))

    def compute(self) -> Aupimo:
        """Compute AUPIMO of all data since the last reset; raise ShapeError unless both kinds of images exist."""
        normal = sum(pool.images for pool in self._pools.values())
        found = [overlap is not None and overlap.size > 0 for overlap in self._overlaps]
        if not normal or not any(found):
            raise ShapeError(
                "anomaly_masks must have at least one normal image, without anomalous pixels, and one anomalous image, "
                f"but got {normal} normal and {sum(found)} anomalous"
            )
        pixels = sum(size * pool.images for size, pool in self._pools.items())
        if pixels * self.fpr_bounds[0] < 1 - 1e-9:
            warnings.warn(
                f"AUPIMO needs at least {1 / self.fpr_bounds[0]:.0f} normal pixels for rates from "
                f"{self.fpr_bounds[0]:g} on, but got {pixels}; evaluate more or larger normal images",
                stacklevel=2,
            )
        pools = {size: pool.highest(self._needed(size, normal)) for size, pool in self._pools.items()}
        scores = np.concatenate(list(pools.values()))
        shares = np.concatenate([np.full(len(kept), 1 / (size * normal)) for size, kept in pools.items()])
        order = np.argsort(scores)
        rates = np.concatenate(([0.0], np.cumsum(shares[order][::-1])))  # of the highest 0, 1, 2 ... scores
        overlaps = [overlap for overlap in self._overlaps if overlap is not None and overlap.size]
        areas = self._areas(np.concatenate(overlaps), scores[order], rates)
        counts = np.array([len(overlap) for overlap in overlaps])
        values = np.full(len(found), np.nan)
        values[found] = np.minimum(1.0, np.add.reduceat(areas, np.cumsum(counts) - counts) / counts)
        return Aupimo(math.fsum(values[found]) / len(overlaps), values)  # whatever the order

    def _areas(self, overlap: Array, normal: Array, rates: Array) -> Array:
        """Return the area of each anomalous pixel, which is found between the rates x0 and x1, at which it ties."""
        low, high = self.fpr_bounds
        x0, x1 = (rates[len(normal) - np.searchsorted(normal, overlap, side=side)] for side in ("right", "left"))
        a, b = np.clip(x0, low, high), np.clip(x1, low, high)
        # The integral of (x - x0) / (x1 - x0) over d log x from a to b, and of 1 from b on
        rising = (b - a - x0 * np.log1p((b - a) / a)) / np.where(x1 > x0, x1 - x0, 1.0)
        areas: Array = (rising + np.log(high / b)) / math.log(high / low)
        return areas

    def _needed(self, size: int, images: int) -> int:
        """Return a number of scores in `images` images of a size beyond which the rate exceeds the bounds."""
        return math.ceil(self.fpr_bounds[1] * images * size) + 1

    def _add(self, size: int, images: int, parts: list[Array]) -> None:
        pool = self._pools.setdefault(size, _Pool())
        pool.add(images, parts)
        if self.images is not None:
            needed = self._needed(size, self.images)
            if sum(map(len, pool.parts)) > 2 * needed + size:
                pool.parts = [pool.highest(needed)]

    def __repr__(self) -> str:
        return f"AupimoAccumulator({self.fpr_bounds}, images={self.images})"
