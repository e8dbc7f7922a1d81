"""The report of a table as Markdown."""

from collections.abc import Mapping
from typing import Any

from ..shared.figures import markdown_table, number, text_of

NAMES = {
    "image_auroc": "Image AUROC",
    "pixel_auroc": "Pixel AUROC",
    "aupro": "AUPRO (up to a false-positive rate of 0.3)",
}
COST = {
    "steps": "optimizer steps",
    "trained_parameters": "trained parameters",
    "train_seconds": "training, s",
    "train_cpu_seconds": "training, CPU-s",
    "evaluate_seconds": "evaluation, s",
    "peak_memory_mb": "peak memory, MB",
}


def to_markdown(summary: Mapping[str, Any]) -> str:
    """Return the report: what is compared, a table for each metric, cost and provenance."""
    parts = [f"# {summary['title']}", *summary["comparison"]]
    if summary["done"] < summary["planned"]:
        parts.append(f"**Unfinished: {summary['done']} of {summary['planned']} cells.** A dash is a missing figure.")
    for metric in summary["metrics"]:
        parts += [f"## {NAMES[metric]}, %", _averages(summary, metric)]
        if len(summary["categories"]) > 1:
            parts += ["By category, paper | ours:", _by_category(summary, metric)]
    if summary["others"]:
        rows = [
            [o["method"], o["backbone"], NAMES[o["metric"]], number(o["all"]), number(o["here"])]
            for o in summary["others"]
        ]
        header = ["method", "backbone", "metric", "paper, its average", "paper, these categories"]
        parts += ["## Other methods: the paper's figures, not measured here", markdown_table(header, rows)]
    parts += ["## Cost of a cell, means", _cost(summary)]
    for title, lines in (("Warnings", summary["warnings"]), ("Misprints in the paper's columns", summary["misprints"])):
        if lines:
            parts += [f"## {title}", "\n".join(f"- {line}" for line in lines)]
    made = summary["provenance"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    parts += [
        "## How it was made",
        f"- `{made['command']}`\n"
        f"- cells of commit {', '.join(made['commits'])}; {versions}\n"
        f"- {made['machine']}; {made['device']}, threads per cell: {made['threads']}\n"
        "- the command of each cell is in `cells.jsonl`",
    ]
    return "\n\n".join(parts) + "\n"


def _averages(summary: Mapping[str, Any], metric: str) -> str:
    tracked = any(row["metrics"][metric]["best_on_test"] for row in summary["rows"])
    header = ["row", "", "paper, its average", "paper, these categories", "ours, last epoch", "ours - paper"]
    header += ["compared with", "paper: difference", "ours: difference"]
    header += ["best on test (chosen on the test images)"] if tracked else []
    rows = []
    for row in summary["rows"]:
        found, against = row["metrics"][metric], row["metrics"][metric]["against"]
        difference = number(found["difference"], signed=True)
        if found["difference"] is not None and found["paper"]["here"] is None:
            difference += " *"
        line = [f"*{row['row']}* (control)" if row["control"] else row["row"], row["text"]]
        line += [number(found["paper"]["all"]), number(found["paper"]["here"]), text_of(found["ours"]), difference]
        if against:
            line += [against["row"], number(against["paper"], signed=True), text_of(against["ours"], signed=True)]
        else:
            line += ["", "", ""]
        rows.append(line + ([text_of(found["best_on_test"])] if tracked else []))
    note = "\n\n\\* to the paper's average over all its categories: it does not print these one by one."
    return markdown_table(header, rows) + (note if any(" *" in row[5] for row in rows) else "")


def _by_category(summary: Mapping[str, Any], metric: str) -> str:
    rows = []
    for row in summary["rows"]:
        found = row["metrics"][metric]["categories"].values()
        rows.append([row["row"], *(f"{number(c['paper'])} \\| {text_of(c['ours'])}" for c in found)])
    return markdown_table(["row", *summary["categories"]], rows)


def _cost(summary: Mapping[str, Any]) -> str:
    rows = []
    for row in summary["rows"]:
        cost = row["cost"] or {}
        values = [(cost.get(name), 1 if "seconds" in name else 0) for name in COST]
        rows.append([row["row"], *("-" if v is None else f"{v:,.{digits}f}" for v, digits in values)])
    return markdown_table(["row", *COST.values()], rows)
