"""The report of a table: its figures, what is compared, and how it was made."""

import argparse
import json
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from .planning import Planned
from .summary import assemble
from .tables import Row, Table

PAPER_EPOCHS = 80


def report(
    table: Table, rows: Sequence[Row], cells: Sequence[Planned], options: argparse.Namespace, command: Sequence[str]
) -> dict[str, Any]:
    """Return the report as plain data, for JSON, Markdown and the chart."""
    summary = assemble(table, rows, cells)
    kept = [c.kept for c in cells if c.kept]
    settings = [c.kept["settings"] if c.kept else c.cell.settings for c in cells if c.kept or c.cell]
    return {
        **summary,
        "comparison": _comparison(table, summary, settings, options),
        "provenance": {
            "command": shlex.join(command),
            "commits": sorted({k["record"]["commit"] for k in kept}),
            "versions": _merged([k["record"]["versions"] for k in kept]),
            "machine": _either(k["record"]["machine"] for k in kept),
            "device": _either(k["result"]["device"] for k in kept if "device" in k["result"]),
            "threads": _either(k["result"]["threads"] for k in kept if "threads" in k["result"]),
        },
        "missing": [str(c.key) for c in cells if not c.kept],
    }


def _comparison(
    table: Table, summary: dict[str, Any], settings: Sequence[dict[str, Any]], options: argparse.Namespace
) -> list[str]:
    """Return sentences about what is compared with what."""
    categories, seeds = summary["categories"], summary["seeds"]
    epochs = ", ".join(f"{name} {_either(n) or 'as in the recipe'}" for name, n in summary["epochs"].items())
    backbone, weights, size = (_either(s[name] for s in settings) for name in ("backbone", "weights", "image_size"))
    average = ", average over its 15 categories" if table.data == "mvtec" else ""
    lines = [
        f"**Paper**: {table.paper_backbone}, {PAPER_EPOCHS} epochs (SANFlow), {table.dataset}{average}. The column "
        "*these categories* is the mean of its figures for ours, if it prints them.",
        f"**Ours**: {backbone} ({weights} weights), {size} px, "
        f"{len(categories)} {'category' if len(categories) == 1 else 'categories'} ({', '.join(categories)}), "
        f"epochs: {epochs}; seeds {', '.join(map(str, seeds))}; the model of the last epoch. ± is the standard "
        "deviation over the seeds.",
    ]
    if table.notes:
        lines.append(table.notes)
    changed = {
        f"{name}={value if isinstance(value, str) else json.dumps(value)}": None
        for s in settings
        for name, value in {**s["set"], **s["fit"]}.items()
        if name != "epochs"
    }
    if changed:
        lines.append(f"Changed settings: `{' '.join(changed)}`.")
    differs = ["the backbone"] if backbone != table.backbone or weights == "random" else []
    if any(numbers not in ([], [PAPER_EPOCHS]) for numbers in summary["epochs"].values()):
        differs.append("the length of training")
    if differs:
        lines.append(
            f"**Different from the paper: {' and '.join(differs)}.** So compare the differences between rows, *paper: "
            "difference* with *ours: difference*, and not the figures themselves."
        )
    if any(row["control"] for row in summary["rows"]):
        lines.append(
            "Rows marked *control* are not in the paper: they show whether a predicted variance is better than "
            "variance 1 and than one learned constant per scale, for the same number of optimizer steps."
        )
    evaluations = max((s["evaluations"] for s in settings), default=options.track_best)
    if evaluations > 1:
        lines.append(
            f"*Best on test* is the highest of {evaluations} evaluations on the test images during training, for each "
            "metric and cell. No user could choose it; the published code reports such a figure."
        )
    return lines


def _either(values: Iterable[object]) -> str:
    return " or ".join(dict.fromkeys(map(str, values)))


def _merged(versions: Sequence[dict[str, str]]) -> dict[str, str]:
    names = dict.fromkeys(name for one in versions for name in one)
    return {name: _either(one[name] for one in versions if name in one) for name in names}
