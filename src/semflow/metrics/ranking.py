"""AUROC, average precision and F1-max: all three read off the ranks of the anomalous scores among the normal ones."""

from typing import NamedTuple

import numpy as np

from semflow.errors import ShapeError

from .inputs import Array, Values, as_flags, as_scores, check_same_shape

__all__ = [
    "ImageMetrics",
    "Ranking",
    "auroc",
    "average_precision",
    "f1_max",
    "f1_max_threshold",
    "image_metrics",
    "rank",
    "split",
]


class ImageMetrics(NamedTuple):
    """The three metrics of scores with labels, as fractions.

    Example:
        >>> image_metrics([0.1, 0.7, 0.9], [0, 0, 1]).auroc
        1.0
    """

    auroc: float
    average_precision: float
    f1_max: float


class Ranking(NamedTuple):
    """What lies at and above every distinct anomalous score.

    The three metrics change with the anomalous scores only: a threshold at a score that just normal entries have adds
    false alarms and no hit, which leaves recall alone and lowers F1. So normal scores need no grouping, only counting.

    Fields, T distinct anomalous scores in rising order:
        thresholds: the scores, (T,).
        starts: where each begins among the sorted anomalous scores, (T,).
        hits: anomalous entries with exactly this score, (T,).
        found: anomalous entries with this score or a higher one, (T,).
        alarms: normal entries with this score or a higher one, (T,).
        alarms_above: normal entries with a higher score, (T,).
        normal, anomalous: how many entries there are of either kind.
    """

    thresholds: Array
    starts: Array
    hits: Array
    found: Array
    alarms: Array
    alarms_above: Array
    normal: int
    anomalous: int

    def auroc(self) -> float:
        """P(anomalous > normal) + P(equal) / 2, from a sum of integers."""
        inversions = int(np.dot(self.hits, self.alarms + self.alarms_above))
        return 1.0 - inversions / (2 * self.normal * self.anomalous)

    def average_precision(self) -> float:
        """Sum over thresholds of (step in recall) * precision."""
        return float(np.dot(self.hits, self.found / (self.found + self.alarms))) / self.anomalous

    def f1(self) -> Array:
        """2 TP / (2 TP + FP + FN) at every threshold, (T,)."""
        f1: Array = 2 * self.found / (self.anomalous + self.found + self.alarms)
        return f1

    def image_metrics(self) -> ImageMetrics:
        """All three."""
        return ImageMetrics(self.auroc(), self.average_precision(), float(self.f1().max()))


def split(scores: Values, labels: Values) -> tuple[Array, Array]:
    """The scores of the normal entries and those of the anomalous ones, as copies."""
    values, flags = as_scores("scores", scores), as_flags("labels", labels)
    check_same_shape("scores", values, "labels", flags)
    return values[~flags], values[flags]


def rank(normal: Array, anomalous: Array, labels: str = "labels") -> Ranking:
    """Rank sorted anomalous scores among sorted normal ones; `labels` is the argument that an error names."""
    n, m = len(normal), len(anomalous)
    if not n or not m:
        raise ShapeError(
            f"{labels}: expected at least one normal (0) and one anomalous (1) entry, "
            f"got {n} normal and {m} anomalous; no ranking metric is defined without both"
        )
    # Compared, not subtracted: infinity minus infinity is NaN.
    starts = np.flatnonzero(np.concatenate(([True], anomalous[1:] != anomalous[:-1])))
    thresholds = anomalous[starts]
    return Ranking(
        thresholds=thresholds,
        starts=starts,
        hits=np.diff(starts, append=m),
        found=m - starts,
        alarms=n - np.searchsorted(normal, thresholds, side="left"),
        alarms_above=n - np.searchsorted(normal, thresholds, side="right"),
        normal=n,
        anomalous=m,
    )


def _rank(scores: Values, labels: Values) -> Ranking:
    normal, anomalous = split(scores, labels)
    normal.sort()
    anomalous.sort()
    return rank(normal, anomalous)


def image_metrics(scores: Values, labels: Values) -> ImageMetrics:
    """AUROC, average precision and F1-max from one sort; arguments as in `auroc`.

    Example:
        >>> image_metrics([0.1, 0.7, 0.6, 0.9], [0, 0, 1, 1])
        ImageMetrics(auroc=0.75, average_precision=0.8333333333333333, f1_max=0.8)
    """
    return _rank(scores, labels).image_metrics()


def auroc(scores: Values, labels: Values) -> float:
    """Area under the ROC curve: the probability that an anomalous entry scores higher than a normal one.

    AUROC = (1 / n m) sum over normal i and anomalous j of [s_j > s_i] + [s_j = s_i] / 2, the Mann-Whitney statistic,
    which is the trapezoid area of the ROC curve with ties merged.

    Args:
        scores: higher is more anomalous; tensor or array of any shape and real type, infinities allowed.
        labels: 1 or True where anomalous, else 0; the shape of `scores`.

    Raises:
        ShapeError: shapes differ, a score is NaN, a label is neither 0 nor 1, or one of the two kinds is absent.

    >>> auroc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1])
    0.875
    """
    return _rank(scores, labels).auroc()


def average_precision(scores: Values, labels: Values) -> float:
    """Average precision: AP = sum_t (R_t - R_(t-1)) P_t over the distinct scores t, falling; no interpolation.

    Arguments and errors as in `auroc`.

    >>> average_precision([0.1, 0.4, 0.3, 0.8], [0, 0, 1, 1])
    0.8333333333333333
    """
    return _rank(scores, labels).average_precision()


def f1_max(scores: Values, labels: Values) -> float:
    """The highest F1 = 2 TP / (2 TP + FP + FN) that any threshold on the scores reaches.

    The threshold is chosen on the very labels it is judged by: an upper bound, not what a deployed threshold gives.
    Arguments and errors as in `auroc`.

    >>> f1_max([0.1, 0.4, 0.3, 0.8], [0, 0, 1, 1])
    0.8
    """
    return float(_rank(scores, labels).f1().max())


def f1_max_threshold(scores: Values, labels: Values) -> float:
    """The score t for which `scores >= t` has the F1 of `f1_max`; the highest one if several do.

    Arguments and errors as in `auroc`.

    >>> f1_max_threshold([0.1, 0.4, 0.3, 0.8], [0, 0, 1, 1])
    0.3
    """
    ranking = _rank(scores, labels)
    f1 = ranking.f1()
    return float(ranking.thresholds[len(f1) - 1 - np.argmax(f1[::-1])])
