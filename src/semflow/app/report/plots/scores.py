"""Histogram of the scores of normal and of anomalous images."""

from typing import TYPE_CHECKING

import numpy as np

from semflow.errors import ConfigError
from semflow.metrics.inputs import Values
from semflow.metrics.ranking import split

from .style import ANOMALOUS, NORMAL, THRESHOLD, finish, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
