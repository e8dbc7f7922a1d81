"""What all plots share: a figure, its axes, its colours, and how it is saved."""

__all__ = ["ANOMALOUS", "FAINT", "NORMAL", "THRESHOLD", "finish", "heat_colormap", "new_figure", "save_figure"]

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semflow._optional import import_optional
from semflow.app.report.colors import HEAT_ANCHORS
from semflow.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's blue, vermilion and bluish green, and a grey: apart in colour-blindness, by lightness in grey print.
NORMAL, ANOMALOUS, THRESHOLD, FAINT = "#0072B2", "#D55E00", "#009E73", "#8A8A8A"


def new_figure(columns: int = 1, rows: int = 1, *, width: float = 4.4, height: float = 3.2) -> "tuple[Figure, Any]":
    """A figure of panels, each of this size in inches, and its axes (rows, columns).

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure = import_optional("matplotlib.figure").Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def finish(axes: Any, title: str, x: str, y: str) -> None:
    """Title, labels, a faint grid, no box; a legend where something is labelled."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)


def heat_colormap() -> Any:
    """The colours of heat maps as a colormap of matplotlib."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("semflow", list(HEAT_ANCHORS / 255.0))


def save_figure(figure: "Figure", path: str | Path) -> list[Path]:
    """Write a figure as PNG and SVG, each whole or not at all; the same figure gives the same bytes.

    Args:
        figure: of one of these functions.
        path: of the two files, without an ending or with that of either.

    Returns:
        The two paths.
    """
    import matplotlib as mpl

    base = Path(path)
    base = base.with_suffix("") if base.suffix in (".png", ".svg") else base
    written = []
    for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        with mpl.rc_context({"svg.hashsalt": "semflow"}):  # names inside an SVG are random otherwise
            figure.savefig(buffer, format=ending, dpi=160, metadata=metadata)
        written.append(write_atomic(base.with_name(f"{base.name}.{ending}"), buffer.getvalue()))
    return written
