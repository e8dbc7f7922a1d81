"""AUPRO: the overlap with anomalous regions of any size over the false-positive rate."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy

from semflow.errors import ConfigError, ShapeError

from .inputs import Array, Maps, as_flags, as_maps, as_scores, check_same_shape
from .ranking import Ranking, rank

_EIGHT_CONNECTED = np.ones((3, 3), dtype=np.int8)


class PixelMetrics(NamedTuple):
    """AUROC, average precision, F1-max and AUPRO of anomaly maps with masks, in [0, 1].

    Example:
        >>> pixel_metrics([[[0.1, 0.2, 0.9]]], [[[0, 0, 1]]]).aupro
        1.0
    """

    auroc: float
    average_precision: float
    f1_max: float
    aupro: float


class PixelSplit(NamedTuple):
    """Scores of normal and of anomalous pixels, and the weight 1 / |region| of each anomalous pixel."""

    normal: Array
    anomalous: Array
    weights: Array


def aupro(scores: Maps, anomaly_masks: Maps, fpr_limit: float = 0.3, inside: Maps | None = None) -> float:
    """Compute the area under the per-region-overlap curve up to a false-positive rate, divided by that rate.

    At threshold t, PRO(t) is the mean over all anomalous regions (8-connected, of all images) of the fraction of the
    region with s >= t, and FPR(t) is the fraction of all normal pixels of all images with s >= t. The points (FPR, PRO)
    of all distinct scores, starting at (0, 0) and joined by straight lines, are integrated up to a = fpr_limit
    (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021).

    The curve is not computed explicitly. A pixel p of a region R contributes w_p = 1 / |R| to the overlap of that
    region, so with K regions PRO is the sum over anomalous pixels of (w_p / K) r_p(x), where r_p(x) is the detected
    fraction of p at FPR x. Let x0 = FPR(s > s_p) and x1 = FPR(s >= s_p). Without normal pixels of the same score,
    x0 = x1 and r_p is a step there. Otherwise the tie is one straight segment of the curve, and r_p rises linearly from
    0 at x0 to 1 at x1. In both cases the area under r_p up to a is

        A_p = max(0, a - x1) + u^2 / (2 (x1 - x0)),  u = min(max(a - x0, 0), x1 - x0)   (second term 0 if x0 = x1)

    and AUPRO = sum_p w_p A_p / (K a). This needs only ranks among the sorted normal scores.

    Args:
        scores: Anomaly maps, higher is more anomalous; (B, H, W), one (H, W), or a list of (H, W) of any sizes.
        anomaly_masks: 1 or True where anomalous; the shapes of `scores`.
        fpr_limit: False-positive rate in (0, 1].
        inside: 1 or True at the pixels that count, in the shapes of `scores`; None counts all.

    Raises:
        ShapeError: If shapes differ, a score is NaN, a mask has values other than 0 and 1, or there are not
            both normal and anomalous pixels.
        ConfigError: If `fpr_limit` is not in (0, 1].

    Example:
        >>> import torch
        >>> mask = torch.tensor([[[0, 0, 0, 1]]])
        >>> aupro(torch.tensor([[[0.1, 0.2, 0.7, 0.5]]]), mask, fpr_limit=0.5)  # detected at FPR 1/3
        0.3333333333333333
    """
    return overlap_area([split_pixels(scores, anomaly_masks, inside)], fpr_limit)


def pixel_metrics(scores: Maps, anomaly_masks: Maps, fpr_limit: float = 0.3) -> PixelMetrics:
    """Compute AUROC, average precision, F1-max and AUPRO over all pixels with one sort; arguments as in `aupro`.

    Example:
        >>> pixel_metrics([[[0.1, 0.2, 0.9], [0.3, 0.1, 0.8]]], [[[0, 0, 1], [0, 0, 1]]])
        PixelMetrics(auroc=1.0, average_precision=1.0, f1_max=1.0, aupro=1.0)
    """
    return evaluate_pixels([split_pixels(scores, anomaly_masks)], fpr_limit)


def overlap_area(parts: Sequence[PixelSplit], fpr_limit: float) -> float:
    """Compute AUPRO of all parts together."""
    check_fpr_limit(fpr_limit)
    return _aupro(*_rank(parts), fpr_limit)


def evaluate_pixels(parts: Sequence[PixelSplit], fpr_limit: float) -> PixelMetrics:
    """Compute the four metrics of all parts together."""
    check_fpr_limit(fpr_limit)
    ranking, weights = _rank(parts)
    return PixelMetrics(*ranking.image_metrics(), _aupro(ranking, weights, fpr_limit))


def split_pixels(scores: Maps, anomaly_masks: Maps, inside: Maps | None = None) -> PixelSplit:
    """Check the maps and masks, find the regions, and return copies of the pixels that count, by kind."""
    parts = []
    for values, mask, counted in paired_maps(scores, anomaly_masks, inside):
        normal = ~mask
        if counted is not None:
            normal, mask = normal & counted, mask & counted
        parts.append(PixelSplit(values[normal], values[mask], _region_weights(mask)))
    return join(parts)


def paired_maps(
    scores: Maps, anomaly_masks: Maps, inside: Maps | None = None
) -> Iterator[tuple[Array, Array, Array | None]]:
    """Check maps, masks and the pixels that count, and yield those of each image, (H, W)."""
    maps, masks = as_maps("scores", scores), as_maps("anomaly_masks", anomaly_masks)
    if len(maps) != len(masks):
        raise ShapeError(f"anomaly_masks must have one mask for each of {len(maps)} maps, but got {len(masks)}")
    counted = None if inside is None else list(as_maps("inside", inside).items())
    if counted is not None and len(counted) != len(maps):
        raise ShapeError(f"inside must have one mask for each of {len(maps)} maps, but got {len(counted)}")
    for number, ((name, one_map), (mask_name, one_mask)) in enumerate(zip(maps.items(), masks.items(), strict=True)):
        values, mask = as_scores(name, one_map), as_flags(mask_name, one_mask)
        check_same_shape(name, values, mask_name, mask)
        its = None
        if counted is not None:
            its_name, its = counted[number][0], as_flags(*counted[number])
            check_same_shape(name, values, its_name, its)
        yield values, mask, its


def _region_weights(mask: Array) -> Array:
    labels, _ = scipy.ndimage.label(mask, structure=_EIGHT_CONNECTED)
    inside = labels[mask]
    weights: Array = 1.0 / np.bincount(inside)[inside] if inside.size else np.empty(0)
    return weights


def join(parts: Sequence[PixelSplit]) -> PixelSplit:
    """Concatenate the pixels of all parts."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return PixelSplit(np.empty(0), np.empty(0), np.empty(0))
    return PixelSplit(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def _rank(parts: Sequence[PixelSplit]) -> tuple[Ranking, Array]:
    """Return the ranking of all parts, and the sum of the weights at each of its thresholds."""
    normal, anomalous, weights = join(parts)
    order = np.argsort(anomalous)  # only of the anomalous pixels, usually a few percent
    ranking = rank(np.sort(normal), anomalous[order], "anomaly_masks")
    return ranking, np.add.reduceat(weights[order], ranking.starts)


def _aupro(ranking: Ranking, weights: Array, fpr_limit: float) -> float:
    # The formula of `aupro` with numbers of normal pixels instead of fractions.
    limit = fpr_limit * ranking.normal
    width = ranking.alarms - ranking.alarms_above
    ramp = np.clip(limit - ranking.alarms_above, 0, width)
    area = np.maximum(0, limit - ranking.alarms) + ramp**2 / (2 * np.maximum(width, 1))
    # The weights of a region sum to one, so the total is the number of regions up to rounding.
    return min(1.0, float(np.dot(weights, area)) / (float(weights.sum()) * limit))


def check_fpr_limit(fpr_limit: float) -> None:
    """Raise ConfigError unless a false-positive rate is in (0, 1]."""
    if not 0 < fpr_limit <= 1:
        raise ConfigError(f"fpr_limit must be in (0, 1], but got {fpr_limit}; usual are 0.3 and 0.05")
