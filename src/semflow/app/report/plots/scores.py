"""Plots of scores: their histogram, and exact ROC and PRO curves with one point per distinct score."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semflow.errors import ConfigError, ShapeError
from semflow.metrics.inputs import Maps, Values
from semflow.metrics.ranking import split
from semflow.metrics.regions import split_pixels

from .style import ANOMALOUS, FAINT, NORMAL, THRESHOLD, finish, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 4000  # points per curve: more would only enlarge the SVG file

Points = tuple[NDArray[np.float64], NDArray[np.float64]]


def score_histogram(
    scores: Values, labels: Values, *, threshold: float | None = None, bins: int = 30, title: str = "Scores of images"
) -> "Figure":
    """Plot histograms of both kinds of images over the same bins, and the share of each above a threshold.

    Args:
        scores: (N,), higher is more anomalous.
        labels: (N,), 1 where anomalous; all may be normal.
        threshold: Score above which an image counts as anomalous.
        bins: Number of bins over the range of all scores.
        title: Title of the plot.

    Example:
        >>> figure = score_histogram([0.1, 0.2, 0.3, 0.9], [0, 0, 0, 1], threshold=0.25)
        >>> figure.axes[0].get_legend().get_texts()[-1].get_text()
        'threshold 0.25: 33 % of normal, 100 % of anomalous above'
    """
    if bins < 1:
        raise ConfigError(f"bins must be at least 1, but got {bins}")
    normal, anomalous = split(scores, labels)
    edges = np.histogram_bin_edges(np.concatenate((normal, anomalous)), bins=bins)
    figure, ((axes,),) = new_figure(width=5.6)
    kinds = ((normal, NORMAL, "normal", "//"), (anomalous, ANOMALOUS, "anomalous", ""))
    for values, color, name, hatch in kinds:
        if len(values):
            label = f"{name} ({len(values)})"
            axes.hist(values, edges, color=color, alpha=0.6, hatch=hatch, edgecolor="white", label=label)
    if threshold is not None:
        shares = [f"{np.mean(v > threshold):.0%} of {n}".replace("%", " %") for v, _, n, _ in kinds if len(v)]
        label = f"threshold {threshold:.4g}: {', '.join(shares)} above"
        axes.axvline(threshold, color=THRESHOLD, linewidth=2, linestyle="--", label=label)
    axes.yaxis.get_major_locator().set_params(integer=True)
    finish(axes, title, "anomaly score", "images")
    return figure


def roc_points(scores: Values, labels: Values) -> Points:
    """Compute false- and true-positive rates at every distinct score, from the highest to the lowest.

    The first point is (0, 0). The trapezoidal area under the points is `semflow.metrics.auroc`.

    Args:
        scores: (N,), higher is more anomalous.
        labels: (N,), 1 where anomalous.

    Example:
        >>> [rates.tolist() for rates in roc_points([0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1])]
        [[0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0]]
    """
    normal, anomalous = split(scores, labels)
    return _points(normal, anomalous, np.ones(len(anomalous)))


def pro_points(scores: Maps, anomaly_masks: Maps) -> Points:
    """Compute the false-positive rate of normal pixels and the mean overlap with anomalous regions, at every score.

    The first point is (0, 0). The trapezoidal area up to `fpr_limit`, divided by it, is `semflow.metrics.aupro`, which
    has the same arguments and errors.
    """
    return _points(*split_pixels(scores, anomaly_masks))


def _points(normal: NDArray[Any], anomalous: NDArray[Any], weights: NDArray[Any]) -> Points:
    if not (len(normal) and len(anomalous)):
        raise ShapeError(
            f"labels must have normal and anomalous scores, but got {len(normal)} normal and {len(anomalous)} anomalous"
        )
    scores = np.concatenate((normal, anomalous))
    order = np.argsort(-scores, kind="stable")
    alarms = np.concatenate((np.ones(len(normal)), np.zeros(len(anomalous))))[order].cumsum()
    found = np.concatenate((np.zeros(len(normal)), weights))[order].cumsum()
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of equal scores
    rates = [np.concatenate(([0.0], total[last] / total[-1])) for total in (alarms, found)]
    return rates[0], rates[1]


def roc_curve(scores: Values, labels: Values, *, title: str = "Images") -> "Figure":
    """Plot the ROC curve of images, with its area; the arguments are those of `roc_points`.

    Example:
        >>> figure = roc_curve([0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1])
        >>> figure.axes[0].get_legend().get_texts()[0].get_text()
        'area 0.750'
    """
    return _curve(*roc_points(scores, labels), 1.0, title, "true-positive rate")


def pro_curve(scores: Maps, anomaly_masks: Maps, *, fpr_limit: float = 0.3, title: str = "Pixels") -> "Figure":
    """Plot the per-region overlap up to a false-positive rate, with its area divided by that rate (AUPRO).

    Args:
        scores: Anomaly maps (B, H, W), a single one (H, W), or a list of (H, W).
        anomaly_masks: Masks of the same shapes, 1 where anomalous.
        fpr_limit: Largest false-positive rate, in (0, 1].
        title: Title of the plot.
    """
    if not 0 < fpr_limit <= 1:
        raise ConfigError(f"fpr_limit must be in (0, 1], but got {fpr_limit}")
    return _curve(*pro_points(scores, anomaly_masks), fpr_limit, title, "mean overlap with the regions")


def _curve(x: NDArray[np.float64], y: NDArray[np.float64], limit: float, title: str, y_label: str) -> "Figure":
    end = int(np.searchsorted(x, limit))  # first point at or above the limit: cut the segment before it
    share = (limit - x[end - 1]) / (x[end] - x[end - 1])
    x, y = np.append(x[:end], limit), np.append(y[:end], y[end - 1] + share * (y[end] - y[end - 1]))
    area = float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2)) / limit
    figure, ((axes,),) = new_figure()
    if limit == 1.0:
        axes.plot((0, 1), (0, 1), color=FAINT, linewidth=1, linestyle=":")
    shown = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST)).round().astype(int))
    axes.plot(x[shown], y[shown], color=NORMAL, linewidth=2, label=f"area {area:.3f}")
    axes.fill_between(x[shown], y[shown], color=NORMAL, alpha=0.12, linewidth=0)
    axes.set(xlim=(0, limit), ylim=(0, 1.02))
    finish(axes, title, "false-positive rate", y_label)
    axes.get_legend().set_loc("lower right")
    return figure
