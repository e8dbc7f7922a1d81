"""ROC and PRO curves: exact, one point a distinct score, ties merged."""

__all__ = ["pro_curve", "pro_points", "roc_curve", "roc_points"]

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semflow.errors import ConfigError, ShapeError
from semflow.metrics.inputs import Maps, Values
from semflow.metrics.ranking import split
from semflow.metrics.regions import split_pixels

from .style import FAINT, NORMAL, finish, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 4000
"""Points drawn of a curve: what a picture can show, and an SVG should hold."""

Points = tuple[NDArray[np.float64], NDArray[np.float64]]


def roc_points(scores: Values, labels: Values) -> Points:
    """False- and true-positive rates at every distinct score from the highest on, beginning with (0, 0).

    The area below, by trapezoids, is `semflow.metrics.auroc`.

    Raises:
        ShapeError: as `semflow.metrics.auroc`.

    >>> [rates.tolist() for rates in roc_points([0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1])]
    [[0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0]]
    """
    normal, anomalous = split(scores, labels)
    return _points(normal, anomalous, np.ones(len(anomalous)))


def pro_points(scores: Maps, anomaly_masks: Maps) -> Points:
    """False-positive rate of the normal pixels, and mean overlap with the anomalous regions.

    Arguments and errors are those of `semflow.metrics.aupro`.
    The area up to `fpr_limit`, by trapezoids and divided by it, is AUPRO.
    """
    return _points(*split_pixels(scores, anomaly_masks))


def _points(normal: NDArray[Any], anomalous: NDArray[Any], weights: NDArray[Any]) -> Points:
    if not (len(normal) and len(anomalous)):
        raise ShapeError(
            f"labels: expected normal and anomalous scores, got {len(normal)} normal and {len(anomalous)} anomalous"
        )
    scores = np.concatenate((normal, anomalous))
    order = np.argsort(-scores, kind="stable")
    alarms = np.concatenate((np.ones(len(normal)), np.zeros(len(anomalous))))[order].cumsum()
    found = np.concatenate((np.zeros(len(normal)), weights))[order].cumsum()
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of the equal scores
    rates = [np.concatenate(([0.0], total[last] / total[-1])) for total in (alarms, found)]
    return rates[0], rates[1]


def roc_curve(scores: Values, labels: Values, *, title: str = "Images") -> "Figure":
    """The ROC curve of images with its area.

    Args:
        scores: (N,), higher is more anomalous.
        labels: (N,), 1 where anomalous.
        title: above the plot.

    >>> figure = roc_curve([0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1])
    >>> figure.axes[0].get_legend().get_texts()[0].get_text()
    'area 0.750'
    """
    x, y = roc_points(scores, labels)
    return _curve(x, y, 1.0, title, "true-positive rate")


def pro_curve(scores: Maps, anomaly_masks: Maps, *, fpr_limit: float = 0.3, title: str = "Pixels") -> "Figure":
    """The per-region-overlap curve up to a false-positive rate, with its area divided by that rate (AUPRO).

    Args:
        scores: anomaly maps (B, H, W), one (H, W), or a list of (H, W).
        anomaly_masks: 1 where anomalous; the shapes of `scores`.
        fpr_limit: in (0, 1].
        title: above the plot.
    """
    if not 0 < fpr_limit <= 1:
        raise ConfigError(f"fpr_limit: expected a rate above 0 and at most 1, got {fpr_limit}; the usual one is 0.3")
    x, y = pro_points(scores, anomaly_masks)
    return _curve(x, y, fpr_limit, title, "mean overlap with the regions")


def _curve(x: NDArray[np.float64], y: NDArray[np.float64], limit: float, title: str, y_label: str) -> "Figure":
    end = int(np.searchsorted(x, limit))  # the first point not before the limit: the segment that leads to it is cut
    share = (limit - x[end - 1]) / (x[end] - x[end - 1])
    x, y = np.append(x[:end], limit), np.append(y[:end], y[end - 1] + share * (y[end] - y[end - 1]))
    area = float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2)) / limit
    figure, axes = new_figure()
    if limit == 1.0:
        axes[0, 0].plot((0, 1), (0, 1), color=FAINT, linewidth=1, linestyle=":")
    shown = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST)).round().astype(int))
    axes[0, 0].plot(x[shown], y[shown], color=NORMAL, linewidth=2, label=f"area {area:.3f}")
    axes[0, 0].fill_between(x[shown], y[shown], color=NORMAL, alpha=0.12, linewidth=0)
    axes[0, 0].set(xlim=(0, limit), ylim=(0, 1.02))
    finish(axes[0, 0], title, "false-positive rate", y_label)
    axes[0, 0].get_legend().set_loc("lower right")
    return figure
