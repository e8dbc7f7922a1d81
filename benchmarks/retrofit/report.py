"""The retrofit's cells as tables: levels, and what the retrofit changes, seed by seed."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..shared.record import provenance, versions
from .cells import RetrofitCell
from .flows import LIBRARIES
from .model import VARIANTS

__all__ = ["METRICS", "excerpt", "summarise", "to_markdown"]

Kept = dict[str, Any] | None
METRICS = {
    "log_likelihood": ("log p", 1, 3),
    "image_auroc": ("image AUROC", 100, 1),
    "pixel_auroc": ("pixel AUROC", 100, 1),
    "aupro": ("AUPRO", 100, 1),
    "image_auroc_log_det": ("image AUROC, log-det", 100, 1),
    "pixel_auroc_log_det": ("pixel AUROC, log-det", 100, 1),
    "aupro_log_det": ("AUPRO, log-det", 100, 1),
}
"""Its heading, the factor that it is printed with (percent), and digits."""


def summarise(cells: Sequence[tuple[RetrofitCell, Kept]], command: Sequence[str]) -> dict[str, Any]:
    """Plain data: for each library and variant the metrics by category and in the mean over the categories.

    A figure is the mean and the standard deviation over the seeds, of the mean over the categories where there are
    several; a difference to `own` is taken seed by seed before that.
    """
    first = cells[0][0]
    names = list(dict.fromkeys(cell.data.category for cell, _ in cells))
    packages = [library.package[0] for library in LIBRARIES.values() if library.package[0]]
    rows = []
    for library in dict.fromkeys(cell.library for cell, _ in cells):
        mine = [(cell, kept) for cell, kept in cells if cell.library == library]
        for variant in dict.fromkeys(cell.variant for cell, _ in mine):
            figures = {where: _figures(mine, variant, of) for where, of in _places(names)}
            event = LIBRARIES[library].event
            rows += [{"library": library, "variant": variant, "event": event, "figures": figures}]
    done = [kept for _, kept in cells if kept is not None]
    return {
        "title": "What the retrofit gains",
        "setup": {key: value for key, value in first.config().items() if key in first.setup.__dataclass_fields__},
        "categories": names,
        "seeds": list(dict.fromkeys(cell.seed for cell, _ in cells)),
        "flows": {row["library"]: LIBRARIES[row["library"]].text for row in rows},
        "variants": {row["variant"]: VARIANTS[row["variant"]] for row in rows},
        "rows": rows,
        "done": len(done),
        "planned": len(cells),
        "disagreement": max((kept["result"]["disagreement"] for kept in done), default=None),
        "train_cpu_seconds": sum(kept["result"]["train_cpu_seconds"] for kept in done),
        "provenance": {**provenance(command), "versions": versions(*packages)},
        "commits": sorted({kept["record"]["commit"] for kept in done}),
        "cells": [kept for _, kept in cells if kept is not None],
    }


def _places(names: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    return [*([("mean", names)] if len(names) > 1 else []), *((name, [name]) for name in names)]


def _figures(cells: Sequence[tuple[RetrofitCell, Kept]], variant: str, names: Sequence[str]) -> dict[str, Any]:
    found = {}
    for metric in METRICS:
        mine, own = (_per_seed(cells, one, metric, names) for one in (variant, "own"))
        change = {seed: mine[seed] - own[seed] for seed in mine if seed in own}
        found[metric] = {"value": _spread(mine), "change": None if variant == "own" else _spread(change)}
    return found


def _per_seed(
    cells: Sequence[tuple[RetrofitCell, Kept]], variant: str, metric: str, names: Sequence[str]
) -> dict[int, float]:
    """The mean over the categories, for each seed that has them all."""
    values: dict[int, dict[str, float]] = {}
    for cell, kept in cells:
        value = kept["result"]["metrics"][metric] if kept and cell.variant == variant else None
        if value is not None and cell.data.category in names:
            values.setdefault(cell.seed, {})[cell.data.category] = value
    return {seed: statistics.fmean(of.values()) for seed, of in values.items() if len(of) == len(names)}


def _spread(values: Mapping[int, float]) -> dict[str, Any] | None:
    numbers = list(values.values())
    if not numbers:
        return None
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return {"mean": statistics.fmean(numbers), "std": std, "seeds": list(values), "values": numbers}


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The report: what was done, the changes, the levels, and how it was made."""
    setup, seeds = summary["setup"], ", ".join(map(str, summary["seeds"]))
    what = (
        f"{setup['backbone']} ({setup['weights']} weights), strides {', '.join(map(str, setup['strides']))}, "
        f"{setup['image_size']} px, channels standardised; {setup['steps']} steps of {setup['batch_size']} images, "
        f"Adam from {setup['learning_rate']:g} along a cosine; retrofitted bases start at a variance of "
        f"{setup['mode']:g}; {', '.join(summary['categories'])}; seeds {seeds}; the model of the last step. "
        "± is the standard deviation over the seeds."
    )
    parts = [f"# {summary['title']}", what]
    if summary["done"] < summary["planned"]:
        parts.append(
            f"**Unfinished: {summary['done']} of {summary['planned']} cells.** A dash is what is missing; a figure of "
            "some seeds alone names them."
        )
    parts.append("\n".join(f"- *{name}*: {text}" for name, text in summary["variants"].items()))
    parts.append("\n".join(f"- **{name}**: {text}" for name, text in summary["flows"].items()))
    parts.append(
        "*log p* is that of normal test images, in nats per dimension of the standardised features, with the variance "
        "integrated out. **That of a predicted variance is no density of the features**, for h looks at the features "
        "that it is then asked about. Scores are of the latents; those marked *log-det* are of the features, which "
        "only flows of vectors know of each location. An image's score is the mean of the highest hundredth of its map."
    )
    kinds = [("change", "Change by the retrofit"), ("value", "Levels")]
    for what, title in kinds if "own" in summary["variants"] else kinds[1:]:
        for where, of in _places(summary["categories"]):
            place = of[0] if len(of) == 1 else "mean over the categories"
            parts += [f"## {title}, {place}", _table(summary, where, what)]
    origin = summary["provenance"]
    worst = "-" if summary["disagreement"] is None else f"{summary['disagreement']:.1e}"
    parts += [
        "## How it was made",
        "\n".join(
            [
                f"- `{origin['command']}`",
                f"- cells of commit {', '.join(summary['commits'])}; "
                + ", ".join(f"{name} {version}" for name, version in origin["versions"].items()),
                f"- {origin['machine']}; training took {summary['train_cpu_seconds']:.0f} CPU-seconds in all",
                f"- largest difference of log p on a standard normal between library and semflow: {worst} a dimension",
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def excerpt(summary: Mapping[str, Any], library: str | None = None) -> str:
    """What the documentation quotes, means over the categories.

    Of all libraries the change by the predicted variance; of one library the flow as it was, and both changes.
    """
    where, seeds = _places(summary["categories"])[0][0], summary["seeds"]
    if library is None:
        shown = [m for m in METRICS if not m.endswith("_log_det")]
        found = [row for row in summary["rows"] if row["variant"] == "predicted"]
        lines = [
            [
                row["library"],
                f'`"{row["event"]}"`',
                *(_number(row["figures"][where][m]["change"], m, True, seeds) for m in shown),
            ]
            for row in found
        ]
        return _lines(["flow of", "event", *(METRICS[m][0] for m in shown)], lines)
    mine = [row for row in summary["rows"] if row["library"] == library]
    shown = [m for m in METRICS if mine[0]["figures"][where][m]["value"] is not None]
    names = {"own": "as it was", "learned": "one learned variance: change", "predicted": "predicted variance: change"}
    lines = []
    for row in mine:
        what = "value" if row["variant"] == "own" else "change"
        figures = (_number(row["figures"][where][m][what], m, what == "change", summary["seeds"]) for m in shown)
        lines.append([names[row["variant"]], *figures])
    return _lines(["base", *(METRICS[m][0] for m in shown)], lines)


def _table(summary: Mapping[str, Any], where: str, what: str) -> str:
    rows = []
    for row in summary["rows"]:
        if what == "change" and row["variant"] == "own":
            continue
        figures = (_number(row["figures"][where][m][what], m, what == "change", summary["seeds"]) for m in METRICS)
        rows.append([row["library"], row["variant"], *figures])
    return _lines(["flow of", "base", *(heading for heading, _, _ in METRICS.values())], rows)


def _number(found: Mapping[str, Any] | None, metric: str, signed: bool, seeds: Sequence[int]) -> str:
    if found is None:
        return "-"
    _, factor, digits = METRICS[metric]
    spread = "" if found["std"] is None else f" ± {factor * found['std']:.{digits}f}"
    some = "" if found["seeds"] == seeds else f" (seed {', '.join(map(str, found['seeds']))})"
    return f"{factor * found['mean']:{'+' if signed else ''}.{digits}f}{spread}{some}"


def _lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows))
