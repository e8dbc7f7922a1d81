"""AUPRO: the overlap with every anomalous region, whatever its size, against the false alarms."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from semflow.errors import ConfigError, ShapeError

from .inputs import Array, Maps, as_flags, as_maps, as_scores, check_same_shape
from .ranking import Ranking, rank

__all__ = ["PixelMetrics", "PixelSplit", "aupro", "evaluate_pixels", "pixel_metrics", "split_pixels"]

_EIGHT_CONNECTED = np.ones((3, 3), dtype=np.int8)


class PixelMetrics(NamedTuple):
    """The four metrics of anomaly maps with masks, as fractions.

    Example:
        >>> pixel_metrics([[[0.1, 0.2, 0.9]]], [[[0, 0, 1]]]).aupro
        1.0
    """

    auroc: float
    average_precision: float
    f1_max: float
    aupro: float


class PixelSplit(NamedTuple):
    """All that the pixel metrics need of maps: scores by kind, and with each anomalous one 1 / |its region|."""

    normal: Array
    anomalous: Array
    weights: Array


def aupro(scores: Maps, anomaly_masks: Maps, fpr_limit: float = 0.3) -> float:
    """Area under the per-region-overlap curve up to a false-positive rate, divided by that rate.

    At threshold t, PRO(t) is the mean over all anomalous regions (8-connected, of all images) of the fraction of the
    region with s >= t, and FPR(t) the fraction of all normal pixels of all images with s >= t. The points
    (FPR, PRO) over all distinct scores, from (0, 0), joined by straight lines, are integrated up to a = fpr_limit
    (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021).

    Computed without the curve. A pixel p of a region R carries w_p = 1 / |R| of that region's overlap, so with K
    regions PRO is a sum over anomalous pixels of (w_p / K) r_p(x), where r_p(x) is how far p is found at FPR x. Let
    x0 = FPR(s > s_p) and x1 = FPR(s >= s_p). Without a normal pixel of the same score x0 = x1 and r_p is a step there.
    With some, the threshold passes them and p at once, which is one straight segment of the curve: r_p rises linearly
    from 0 at x0 to 1 at x1. Either way the area under r_p up to a is

        A_p = max(0, a - x1) + u^2 / (2 (x1 - x0)),  u = min(max(a - x0, 0), x1 - x0)   (second term 0 if x0 = x1)

    (a whole ramp has u = x1 - x0 and area u / 2; one cut by the limit is a triangle of base u and height
    u / (x1 - x0)), and AUPRO = sum_p w_p A_p / (K a). Only ranks among the sorted normal scores are needed, so the one
    large sort is of plain values.

    Args:
        scores: anomaly maps, higher is more anomalous; (B, H, W), one (H, W), or a list of (H, W) of any sizes.
        anomaly_masks: 1 or True where anomalous; the shapes of `scores`.
        fpr_limit: in (0, 1].

    Raises:
        ShapeError: shapes differ, a score is NaN, a mask holds more than 0 and 1, or no anomalous or no normal pixel.
        ConfigError: `fpr_limit` is not in (0, 1].

    >>> import torch
    >>> mask = torch.tensor([[[0, 0, 0, 1]]])
    >>> aupro(torch.tensor([[[0.1, 0.2, 0.7, 0.5]]]), mask, fpr_limit=0.5)  # found once 1/3 of the normal pixels are
    0.3333333333333333
    """
    _check_limit(fpr_limit)
    ranking, weights = _rank([split_pixels(scores, anomaly_masks)])
    return _aupro(ranking, weights, fpr_limit)


def pixel_metrics(scores: Maps, anomaly_masks: Maps, fpr_limit: float = 0.3) -> PixelMetrics:
    """AUROC, average precision, F1-max and AUPRO over all pixels from one sort; arguments as in `aupro`.

    Example:
        >>> pixel_metrics([[[0.1, 0.2, 0.9], [0.3, 0.1, 0.8]]], [[[0, 0, 1], [0, 0, 1]]])
        PixelMetrics(auroc=1.0, average_precision=1.0, f1_max=1.0, aupro=1.0)
    """
    return evaluate_pixels([split_pixels(scores, anomaly_masks)], fpr_limit)


def evaluate_pixels(parts: Sequence[PixelSplit], fpr_limit: float) -> PixelMetrics:
    """The four metrics of all parts together."""
    _check_limit(fpr_limit)
    ranking, weights = _rank(parts)
    return PixelMetrics(*ranking.image_metrics(), _aupro(ranking, weights, fpr_limit))


def split_pixels(scores: Maps, anomaly_masks: Maps) -> PixelSplit:
    """Check the maps and masks, label the regions, and part the pixels by kind, as copies."""
    maps, masks = as_maps("scores", scores), as_maps("anomaly_masks", anomaly_masks)
    if len(maps) != len(masks):
        raise ShapeError(f"anomaly_masks: expected a mask for each of {len(maps)} maps of scores, got {len(masks)}")
    parts = []
    for (name, one_map), (mask_name, one_mask) in zip(maps.items(), masks.items(), strict=True):
        values, mask = as_scores(name, one_map), as_flags(mask_name, one_mask)
        check_same_shape(name, values, mask_name, mask)
        parts.append(PixelSplit(values[~mask], values[mask], _region_weights(mask)))
    return _join(parts)


def _region_weights(mask: Array) -> Array:
    labels, _ = ndimage.label(mask, structure=_EIGHT_CONNECTED)
    inside = labels[mask]
    weights: Array = 1.0 / np.bincount(inside)[inside] if inside.size else np.empty(0)
    return weights


def _join(parts: Sequence[PixelSplit]) -> PixelSplit:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return PixelSplit(np.empty(0), np.empty(0), np.empty(0))
    return PixelSplit(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def _rank(parts: Sequence[PixelSplit]) -> tuple[Ranking, Array]:
    """The ranking of all parts, and the sum of the weights at each of its thresholds."""
    normal, anomalous, weights = _join(parts)
    order = np.argsort(anomalous)  # of the anomalous pixels only, commonly a few in a hundred
    ranking = rank(np.sort(normal), anomalous[order], "anomaly_masks")
    return ranking, np.add.reduceat(weights[order], ranking.starts)


def _aupro(ranking: Ranking, weights: Array, fpr_limit: float) -> float:
    # The formula of `aupro` in units of normal pixels instead of fractions of them.
    limit = fpr_limit * ranking.normal
    width = ranking.alarms - ranking.alarms_above
    ramp = np.clip(limit - ranking.alarms_above, 0, width)
    area = np.maximum(0, limit - ranking.alarms) + ramp**2 / (2 * np.maximum(width, 1))
    # The weights of a region add up to one, so all of them add up to the number of regions, but for rounding.
    return min(1.0, float(np.dot(weights, area)) / (float(weights.sum()) * limit))


def _check_limit(fpr_limit: float) -> None:
    if not 0 < fpr_limit <= 1:
        raise ConfigError(f"fpr_limit: expected a rate above 0 and at most 1, got {fpr_limit}; the usual one is 0.3")
