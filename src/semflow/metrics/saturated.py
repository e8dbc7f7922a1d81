"""sPRO: the saturated overlap with defects that need not be found completely."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from semflow.errors import ConfigError, ShapeError

from .inputs import Array, Maps, Values, as_flags, as_maps, as_scores, check_same_shape
from .regions import PixelSplit, join, overlap_area


class Defect(NamedTuple):
    """A labeled defect: its mask (H, W), and the number of its pixels that suffice to find it.

    Example:
        >>> Defect([[0, 1, 1]], saturation=1).saturation
        1
    """

    mask: Values
    saturation: float


def spro(
    scores: Maps, defects: Sequence[Sequence[Defect]], fpr_limit: float = 0.05, inside: Maps | None = None
) -> float:
    """Compute the area under the saturated per-region-overlap curve up to a false-positive rate, divided by that rate.

    At threshold t, sPRO(t) is the mean over all defects i of min(n_i(t) / s_i, 1), where n_i(t) is the number of pixels
    of the defect with s >= t and s_i its saturation: a missing part, say, may be anywhere in a large area, and is found
    if enough of that area is marked (Bergmann et al., "Beyond Dents and Scratches", IJCV 2022). FPR(t) is the fraction
    of the pixels in no defect with s >= t. Otherwise it is defined as `aupro`; saturations of the whole areas give
    AUPRO with the defects as regions.

    Pixels of a defect beyond its s_i highest scores never change the minimum, so sPRO is AUPRO of these pixels with
    weights 1 / s_i, which is how it is computed.

    Args:
        scores: Anomaly maps, as in `aupro`.
        defects: The defects of each map, none for a normal image. Defects may overlap and need not be connected. The
            saturation is a positive number of pixels, at most the area counts; a defect without pixels is left out.
        fpr_limit: False-positive rate in (0, 1].
        inside: 1 or True at the pixels that count, in the shapes of `scores`; None counts all.

    Raises:
        ShapeError: If shapes differ, a score is NaN, or there are not both normal and anomalous pixels.
        ConfigError: If `fpr_limit` or a saturation is out of range.

    Example:
        >>> spro([[[0.1, 0.2, 0.9, 0.0]]], [[Defect([[0, 0, 1, 1]], saturation=1)]])  # one of two pixels is enough
        1.0
    """
    return overlap_area([split_defects(scores, defects, inside)], fpr_limit)


def split_defects(scores: Maps, defects: Sequence[Sequence[Defect]], inside: Maps | None = None) -> PixelSplit:
    """Check maps and defects; return the pixels in no defect, and those that can change sPRO with their weights.

    A pixel of two defects is returned for each.
    """
    maps = as_maps("scores", scores)
    if len(maps) != len(defects):
        raise ShapeError(f"defects must have one list for each of {len(maps)} maps, but got {len(defects)}")
    counts = None if inside is None else list(as_maps("inside", inside).items())
    if counts is not None and len(counts) != len(maps):
        raise ShapeError(f"inside must have one mask for each of {len(maps)} maps, but got {len(counts)}")
    parts = []
    for number, (name, one_map) in enumerate(maps.items()):
        values = as_scores(name, one_map)
        counted = np.ones(values.shape, np.bool_)
        if counts is not None:
            counted = as_flags(*counts[number])
            check_same_shape(name, values, counts[number][0], counted)
        normal = counted.copy()
        for k, (mask, saturation) in enumerate(defects[number]):
            flags = as_flags(f"defects[{number}][{k}]", mask)
            check_same_shape(name, values, f"defects[{number}][{k}]", flags)
            if not 0 < saturation < np.inf:
                raise ConfigError(
                    f"saturation of defects[{number}][{k}] must be a positive number of pixels, but got {saturation}"
                )
            normal &= ~flags
            parts.append(_saturated(values[flags & counted], float(saturation)))
        parts.append(PixelSplit(values[normal], values[:0, 0], np.empty(0)))
    return join(parts)


def _saturated(values: Array, saturation: float) -> PixelSplit:
    """Return the highest scores with weights that sum to one; the last of a fractional saturation has less."""
    saturation = min(saturation, len(values))
    highest = np.sort(values)[::-1][: int(np.ceil(saturation))]
    weights = np.minimum(1.0, saturation - np.arange(len(highest))) / max(saturation, 1e-300)
    return PixelSplit(values[:0], highest, weights)
