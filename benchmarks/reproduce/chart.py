"""The report of a table as a bar chart."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..shared.plots import BEST, CONTROL, OURS, PAPER, save
from .markdown import NAMES


def draw(summary: Mapping[str, Any], base: Path) -> list[Path]:
    """Write BASE.png and BASE.svg: bars of the paper's figures and ours with their spread, one panel per metric."""
    from matplotlib.figure import Figure

    rows, metrics = summary["rows"], summary["metrics"]
    figure = Figure(figsize=(1.5 + 3.6 * len(metrics), 1.9 + 0.5 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        _panel(axes, rows, metric)
    panels[0].set_yticks(range(len(rows)), [f"{row['row']}{' (control)' * row['control']}" for row in rows])
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    handles: dict[str, Any] = {}
    for axes in panels:
        handles.update(dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)))
    figure.suptitle(summary["title"], x=0.01, ha="left", fontsize=12, fontweight="bold")
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=len(handles), frameon=False)
    return [save(figure, base.with_suffix(suffix)) for suffix in (".png", ".svg")]


def _panel(axes: Any, rows: list[Mapping[str, Any]], metric: str) -> None:
    shown = []
    for position, row in enumerate(rows):
        found = row["metrics"][metric]
        here = found["paper"]["here"]
        printed, label = (
            (here, "paper, these categories") if here is not None else (found["paper"]["all"], "paper, average")
        )
        if printed is not None:
            hatch = "////" if here is not None else "...."
            axes.barh(position - 0.2, printed, 0.36, color=PAPER, hatch=hatch, edgecolor="white", label=label)
            shown.append(printed)
        if found["ours"] is not None:
            mean, std = found["ours"]["mean"], found["ours"]["std"]
            color = CONTROL if row["control"] else OURS
            kind = "ours, control" if row["control"] else "ours, last epoch"
            axes.barh(
                position + 0.2, mean, 0.36, color=color, xerr=std, label=kind, error_kw={"elinewidth": 1, "capsize": 2}
            )
            axes.annotate(
                f"{mean:.1f}",
                (mean + (std or 0), position + 0.2),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
            shown += [mean - (std or 0), mean + (std or 0)]
        if found["best_on_test"] is not None:
            best = found["best_on_test"]["mean"]
            axes.plot(best, position + 0.2, "D", color=BEST, markersize=5, label="best on test", linestyle="none")
            shown.append(best)
    # Chance is 50 for an AUROC: bars start there unless a figure is lower, and the axis label has the start.
    start = 50 if metric.endswith("auroc") and shown and min(shown) > 50 else 0
    axes.set_xlim(start, 100 + (100 - start) * 0.12)
    axes.set_xticks(range(start, 101, 10 if start else 20))
    axes.set_xlabel(f"%, axis from {start}{' (chance)' if start else ''}")
    axes.set_title(NAMES[metric].partition(" (")[0], loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
