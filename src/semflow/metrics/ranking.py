"""AUROC, average precision and F1-max from the ranks of the anomalous scores among the normal ones."""

from typing import NamedTuple

import numpy as np

from semflow.errors import ShapeError

from .inputs import Array, Values, as_flags, as_scores, check_same_shape


class ImageMetrics(NamedTuple):
    """AUROC, average precision and F1-max of scores with labels, in [0, 1].

    Example:
        >>> image_metrics([0.1, 0.7, 0.9], [0, 0, 1]).auroc
        1.0
    """

    auroc: float
    average_precision: float
    f1_max: float


class Ranking(NamedTuple):
    """Counts of the entries at and above each of T distinct anomalous scores, ascending.

    Only anomalous scores matter as thresholds: a threshold at a score of normal entries alone adds false alarms without
    a hit, so it does not change recall and lowers F1. Normal scores are counted, not grouped.
    """

    thresholds: Array  # distinct anomalous scores, (T,)
    starts: Array  # index of the first of each among the sorted anomalous scores, (T,)
    hits: Array  # anomalous entries with this score, (T,)
    found: Array  # anomalous entries with at least this score, (T,)
    alarms: Array  # normal entries with at least this score, (T,)
    alarms_above: Array  # normal entries with a higher score, (T,)
    normal: int
    anomalous: int

    def auroc(self) -> float:
        """Return P(anomalous > normal) + P(equal) / 2, from a sum of integers."""
        inversions = int(np.dot(self.hits, self.alarms + self.alarms_above))
        return 1.0 - inversions / (2 * self.normal * self.anomalous)

    def average_precision(self) -> float:
        """Return the sum over thresholds of (step in recall) * precision."""
        return float(np.dot(self.hits, self.found / (self.found + self.alarms))) / self.anomalous

    def f1(self) -> Array:
        """Return 2 TP / (2 TP + FP + FN) at every threshold, (T,)."""
        f1: Array = 2 * self.found / (self.anomalous + self.found + self.alarms)
        return f1

    def image_metrics(self) -> ImageMetrics:
        """Return all three metrics."""
        return ImageMetrics(self.auroc(), self.average_precision(), float(self.f1().max()))


def split(scores: Values, labels: Values) -> tuple[Array, Array]:
    """Return copies of the scores of the normal and of the anomalous entries."""
    values, flags = as_scores("scores", scores), as_flags("labels", labels)
    check_same_shape("scores", values, "labels", flags)
    return values[~flags], values[flags]


def rank(normal: Array, anomalous: Array, labels: str = "labels") -> Ranking:
    """Rank sorted anomalous scores among sorted normal ones; `labels` is the name in errors."""
    n, m = len(normal), len(anomalous)
    check_both_kinds(n, m, labels)
    # Compared, not subtracted, because inf - inf is NaN.
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


def check_both_kinds(normal: int, anomalous: int, name: str) -> None:
    """Raise ShapeError unless there are normal and anomalous entries; no ranking metric is defined otherwise."""
    if not normal or not anomalous:
        raise ShapeError(
            f"{name} must have at least one normal (0) and one anomalous (1) entry, "
            f"but got {normal} normal and {anomalous} anomalous"
        )


def _rank(scores: Values, labels: Values) -> Ranking:
    normal, anomalous = split(scores, labels)
    normal.sort()
    anomalous.sort()
    return rank(normal, anomalous)


def image_metrics(scores: Values, labels: Values) -> ImageMetrics:
    """Compute AUROC, average precision and F1-max with one sort; arguments and errors as in `auroc`.

    Example:
        >>> image_metrics([0.1, 0.7, 0.6, 0.9], [0, 0, 1, 1])
        ImageMetrics(auroc=0.75, average_precision=0.8333333333333333, f1_max=0.8)
    """
    return _rank(scores, labels).image_metrics()


def auroc(scores: Values, labels: Values) -> float:
    """Compute the area under the ROC curve: the probability that an anomalous entry scores higher than a normal one.

    AUROC = (1 / n m) sum over normal i and anomalous j of [s_j > s_i] + [s_j = s_i] / 2, the Mann-Whitney statistic,
    which is the trapezoid area of the ROC curve with ties merged.

    Args:
        scores: Tensor or array of any shape and real dtype, higher is more anomalous; infinities are valid.
        labels: 1 or True where anomalous, else 0; the shape of `scores`.

    Raises:
        ShapeError: If the shapes differ, a score is NaN, a label is neither 0 nor 1, or all labels are equal.

    Example:
        >>> auroc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1])
        0.875
    """
    return _rank(scores, labels).auroc()


def average_precision(scores: Values, labels: Values) -> float:
    """Compute average precision: AP = sum_t (R_t - R_(t-1)) P_t over the distinct scores t, descending.

    Recall is not interpolated. Arguments and errors are those of `auroc`.

    Example:
        >>> average_precision([0.1, 0.4, 0.3, 0.8], [0, 0, 1, 1])
        0.8333333333333333
    """
    return _rank(scores, labels).average_precision()


def f1_max(scores: Values, labels: Values) -> float:
    """Compute the highest F1 = 2 TP / (2 TP + FP + FN) over all thresholds.

    The labels select the threshold, so this is an upper bound for a threshold in use. Arguments and errors are those
    of `auroc`.

    Example:
        >>> f1_max([0.1, 0.4, 0.3, 0.8], [0, 0, 1, 1])
        0.8
    """
    return float(_rank(scores, labels).f1().max())


def f1_max_threshold(scores: Values, labels: Values) -> float:
    """Return the highest score t for which `scores >= t` has the F1 of `f1_max`.

    Arguments and errors are those of `auroc`.

    Example:
        >>> f1_max_threshold([0.1, 0.4, 0.3, 0.8], [0, 0, 1, 1])
        0.3
    """
    ranking = _rank(scores, labels)
    f1 = ranking.f1()
    return float(ranking.thresholds[len(f1) - 1 - np.argmax(f1[::-1])])
