"""Figures, axes, colors and files that all plots share."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semflow._optional import import_optional
from semflow.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Blue, vermilion and bluish green of Okabe and Ito, and a gray; they differ in lightness too.
NORMAL, ANOMALOUS, THRESHOLD, FAINT = "#0072B2", "#D55E00", "#009E73", "#8A8A8A"


def new_figure(columns: int = 1, rows: int = 1, *, width: float = 4.4, height: float = 3.2) -> "tuple[Figure, Any]":
    """Create a figure of panels of the given size in inches, and return it with its axes (rows, columns)."""
    figure = import_optional("matplotlib.figure").Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def finish(axes: Any, title: str, x: str, y: str) -> None:
    """Add title, axis labels, a faint grid and, if anything is labeled, a legend; remove the box."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set(xlabel=x, ylabel=y, axisbelow=True)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)


def save_figure(figure: "Figure", path: str | Path) -> list[Path]:
    """Write a figure atomically as PNG and as SVG, and return the two paths; equal figures give equal bytes.

    Args:
        figure: Result of one of these functions.
        path: Path of the two files, with or without the ending of either.
    """
    import matplotlib as mpl

    base = Path(path)
    base = base.with_suffix("") if base.suffix in (".png", ".svg") else base
    written = []
    for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        with mpl.rc_context({"svg.hashsalt": "semflow"}):  # names inside an SVG would be random
            figure.savefig(buffer, format=ending, dpi=160, metadata=metadata)
        written.append(write_atomic(base.with_name(f"{base.name}.{ending}"), buffer.getvalue()))
    return written
