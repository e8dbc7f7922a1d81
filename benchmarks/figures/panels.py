"""The figures, from the views and histograms of `compute`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compute import Histogram, View
from .style import ANOMALOUS, NORMAL, grid, heat, show


def localization(views: Sequence[View], limits: tuple[float, float], title: str) -> Any:
    """Draw Figure 2: the predicted region, the ground truth, the score map and the variance of the finest scale.

    The region is where the map exceeds the first of `limits`, `Detector.map_range`, as at most 1 in 100 pixels of later
    normal images does. It does not depend on the test images.
    """
    threshold = limits[0]
    names = ["prediction", "ground truth", "score map", *(["variance"] if views[0].variances else [])]
    figure, axes = grid(names, len(views), title)
    show(axes[0], [v.image for v in views], masks=[v.score > threshold for v in views])
    show(axes[1], [_mask(v) for v in views], "gray", (0.0, 1.0))
    show(axes[2], [v.score for v in views], heat(), limits)
    if views[0].variances:
        show(axes[3], [v.variances[0] for v in views], "cividis")
    return figure


def variances(views: Sequence[View], title: str) -> Any:
    """Draw the mode of the predicted variance at each scale; bright is high."""
    scales = range(len(views[0].variances))
    figure, axes = grid(["image", *(f"variance, scale {k + 1}" for k in scales)], len(views), title)
    show(axes[0], [v.image for v in views], masks=[v.mask for v in views])
    for k in scales:
        show(axes[k + 1], [v.variances[k] for v in views], "cividis")
    return figure


def two_bases(views: Sequence[View], title: str) -> Any:
    """Draw Figure 4: score maps based on (a) Z^n, unlikely to be normal, and (b) Z^a, likely to be anomalous."""
    figure, axes = grid(["image", "(a) Z^n: -log p / C", "(b) Z^a: log p / C"], len(views), title)
    masks = [v.mask for v in views]
    show(axes[0], [v.image for v in views], masks=masks)
    show(axes[1], [v.normal for v in views], heat(), masks=masks)
    show(axes[2], [v.anomalous for v in views], heat(), masks=masks)
    return figure


def posterior(views: Sequence[View], title: str) -> Any:
    """Draw Figures S4 (training images with synthetic anomalies) or S5 (test images): s(z) of Eq. 8 as a score."""
    figure, axes = grid(["image", "ground truth", "1 - s(z)", "1 - s(z) > 1/2"], len(views), title)
    scores = [v.posterior for v in views if v.posterior is not None]
    show(axes[0], [v.image for v in views])
    show(axes[1], [_mask(v) for v in views], "gray", (0.0, 1.0))
    show(axes[2], scores, heat())
    show(axes[3], [(s > 0.5).astype(np.float32) for s in scores], "gray", (0.0, 1.0))
    return figure


def comparison(first: Sequence[View], second: Sequence[View], names: tuple[str, str], limits: Any, title: str) -> Any:
    """Draw Figure S3: the score maps of two models, each over the range of its training images."""
    figure, axes = grid(["image", "ground truth", *names], len(first), title)
    show(axes[0], [v.image for v in first])
    show(axes[1], [_mask(v) for v in first], "gray", (0.0, 1.0))
    for row, views, range_ in zip((2, 3), (first, second), limits, strict=True):
        show(axes[row], [v.score for v in views], heat(), range_)
    return figure


def predicted_means(views: Sequence[View], title: str) -> Any:
    """Draw Figure S6, for models 3b and 3c: the predicted normal and anomalous mean of the finest scale."""
    figure, axes = grid(["image", "score map", "normal mean", "anomalous mean"], len(views), title)
    show(axes[0], [v.image for v in views], masks=[v.mask for v in views])
    show(axes[1], [v.score for v in views], heat())
    show(axes[2], [v.means[0][0] for v in views], "cividis")
    show(axes[3], [v.means[0][1] for v in views], "cividis")
    return figure


def histogram_panels(found: Sequence[Histogram], label: str, title: str) -> Any:
    """Draw histograms of normal and anomalous locations and their overlap, one panel per scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(found), 2.6), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, histogram in zip(panels, found, strict=True):
        for counts, color, kind, hatch in (
            (histogram.normal, NORMAL, "normal", None),
            (histogram.anomalous, ANOMALOUS, "anomalous", "///"),
        ):
            density = counts / max(counts.sum(), 1) / np.diff(histogram.edges)
            axes.stairs(density, histogram.edges, fill=True, color=color, alpha=0.55, label=kind, hatch=hatch)
        axes.set_title(f"scale {histogram.scale + 1}: overlap {histogram.overlap:.2f}", loc="left", fontsize=8)
        axes.set_xlabel(label, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("density", fontsize=8)
    panels[0].legend(fontsize=7, frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def _mask(view: View) -> NDArray[np.float32]:
    if view.mask is None:
        return np.zeros(view.score.shape, dtype=np.float32)
    return view.mask.astype(np.float32)
