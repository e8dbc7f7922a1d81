"""Layout of the figures: a grid of images with named rows, and one color bar per row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semflow.app.report.colors import HEAT_ANCHORS

from ..shared import plots

# Blue and orange as in the paper, from the palette of Okabe and Ito, which color-blind readers can tell apart.
NORMAL, ANOMALOUS, OUTLINE = "#0072B2", "#E69F00", "#56B4E9"
CELL = 1.35


def heat() -> Any:
    """Return the color map of semflow's reports."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("semflow", HEAT_ANCHORS / 255)


def grid(names: Sequence[str], columns: int, title: str) -> tuple[Any, NDArray[Any]]:
    """Return a figure with a row for each name, and its axes (rows, columns)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + CELL * columns + 0.5, 0.5 + CELL * len(names)), layout="constrained")
    axes = figure.subplots(len(names), columns, squeeze=False)
    for row, name in enumerate(names):
        for one in axes[row]:
            one.set_xticks([])
            one.set_yticks([])
            one.spines[:].set_linewidth(0.5)
        axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure, axes


def show(
    axes: Sequence[Any],
    maps: Sequence[NDArray[Any] | None],
    colors: Any = None,
    limits: tuple[float, float] | None = None,
    masks: Sequence[NDArray[np.bool_] | None] = (),
) -> None:
    """Draw images or maps into a row; maps share one color range, shown by a bar, and masks are outlined."""
    drawn = [m for m in maps if m is not None]
    flat = bool(drawn) and drawn[0].ndim == 2
    if flat and limits is None:
        limits = float(min(m.min() for m in drawn)), float(max(m.max() for m in drawn))
    image = None
    for one, values in zip(axes, maps, strict=True):
        if values is None:
            one.set_visible(False)
        elif flat and limits is not None:
            low, high = limits
            image = one.imshow(values, cmap=colors, vmin=low, vmax=max(high, low + 1e-9), interpolation="nearest")
        else:
            one.imshow(np.clip(values, 0, 1), interpolation="nearest")
    for one, mask in zip(axes, masks, strict=False):
        if mask is not None and mask.any() and not mask.all():
            one.contour(mask.astype(float), [0.5], colors=[OUTLINE], linewidths=0.8)
    if image is not None and limits != (0.0, 1.0):
        bar = axes[0].figure.colorbar(image, ax=list(axes), shrink=0.85, pad=0.01, aspect=12)
        bar.ax.tick_params(labelsize=6)


def save(figure: Any, base: Path) -> list[Path]:
    """Write BASE.png and BASE.svg."""
    return [plots.save(figure, base.with_suffix(suffix)) for suffix in (".png", ".svg")]
