"""A reproduced table as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["NAMES", "to_markdown"]

NAMES = {
    "image_auroc": "Image AUROC",
    "pixel_auroc": "Pixel AUROC",
    "aupro": "AUPRO (up to a false-positive rate of 0.3)",
}


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The report of `benchmarks.reproduce`: what is compared with what, a table for each metric, cost, provenance."""
    parts = [f"# {summary['title']}", *summary["comparison"]]
    if summary["done"] < summary["planned"]:
        parts.append(f"**Unfinished: {summary['done']} of {summary['planned']} cells.** A dash is what is missing.")
    for metric in summary["metrics"]:
        parts += [f"## {NAMES[metric]}, %", _averages(summary, metric)]
        if len(summary["categories"]) > 1:
            parts += ["By category, paper | ours:", _by_category(summary, metric)]
    if summary["others"]:
        rows = [
            [o["method"], o["backbone"], NAMES[o["metric"]], _number(o["all"]), _number(o["here"])]
            for o in summary["others"]
        ]
        header = ["method", "backbone", "metric", "paper, its average", "paper, these categories"]
        parts += ["## Other methods: the paper's figures, not measured here", _table(header, rows)]
    parts += ["## Cost of a cell, means", _cost(summary)]
    for title, lines in (("Warnings", summary["warnings"]), ("Misprints in the paper's columns", summary["misprints"])):
        if lines:
            parts += [f"## {title}", "\n".join(f"- {line}" for line in lines)]
    origin = summary["provenance"]
    parts += [
        "## How it was made",
        "\n".join(
            [
                f"- `{origin['command']}`",
                f"- commit {origin['commit']}; " + ", ".join(f"{k} {v}" for k, v in origin["versions"].items()),
                f"- {origin['machine']}; {summary['how']}",
                f"- cells that other runs finished: {summary['made_elsewhere']}",
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _averages(summary: Mapping[str, Any], metric: str) -> str:
    tracked = any(row["metrics"][metric]["best_on_test"] for row in summary["rows"])
    header = ["row", "", "paper, its average", "paper, these categories", "ours, last epoch", "ours - paper"]
    header += ["compared with", "paper: difference", "ours: difference"]
    header += ["best on test (chosen on the test images)"] if tracked else []
    rows = []
    for row in summary["rows"]:
        found = row["metrics"][metric]
        against = found["against"] or {"row": "", "paper": None, "ours": None}
        name = f"*{row['row']}* (control)" if row["control"] else row["row"]
        difference = _number(found["difference"], signed=True)
        if found["difference"] is not None and found["paper"]["here"] is None:
            difference += " *"
        cells = [name, row["text"], _number(found["paper"]["all"]), _number(found["paper"]["here"])]
        cells += [_spread(found["ours"]), difference, against["row"]]
        cells += (
            [_number(against["paper"], signed=True), _spread(against["ours"], signed=True)]
            if against["row"]
            else ["", ""]
        )
        rows.append(cells + ([_spread(found["best_on_test"])] if tracked else []))
    note = "\n\n\\* to the paper's average over all its categories: these are not printed one by one."
    return _table(header, rows) + (note if any(" *" in row[5] for row in rows) else "")


def _by_category(summary: Mapping[str, Any], metric: str) -> str:
    rows = []
    for row in summary["rows"]:
        found = row["metrics"][metric]["categories"]
        rows.append(
            [row["row"], *(f"{_number(c['paper'])} | {_spread(c['ours'])}".replace("|", "\\|") for c in found.values())]
        )
    return _table(["row", *summary["categories"]], rows)


def _cost(summary: Mapping[str, Any]) -> str:
    columns = {
        "steps": "optimiser steps",
        "trained_parameters": "trained parameters",
        "train_seconds": "training, s",
        "train_cpu_seconds": "training, CPU-s",
        "evaluate_seconds": "evaluation, s",
        "peak_memory_mb": "peak memory, MB",
    }
    rows = []
    for row in summary["rows"]:
        cost = row["cost"] or {}
        values = [(cost.get(name), 1 if "seconds" in name else 0) for name in columns]
        rows.append([row["row"], *("-" if v is None else f"{v:,.{digits}f}" for v, digits in values)])
    return _table(["row", *columns.values()], rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float | None, signed: bool = False) -> str:
    return "-" if value is None else f"{value:{'+' if signed else ''}.2f}"


def _spread(found: Mapping[str, Any] | None, signed: bool = False) -> str:
    if found is None:
        return "-"
    spread = "" if found["std"] is None else f" ± {found['std']:.2f}"
    return _number(found["mean"], signed) + spread
