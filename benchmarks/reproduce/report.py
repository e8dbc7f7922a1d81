"""The whole report of a table: the assembled figures, and what was compared with what, how and where."""

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

from ..shared.record import provenance
from .planning import backbone_of
from .summary import Planned, assemble
from .tables import Row, Table

__all__ = ["report"]

PAPER_EPOCHS = 80


def report(
    table: Table, rows: Sequence[Row], cells: Sequence[Planned], options: argparse.Namespace, command: Sequence[str]
) -> dict[str, Any]:
    """Plain data for JSON, Markdown and the chart."""
    summary = assemble(table, rows, cells)
    kept = [c.kept for c in cells if c.kept is not None]
    elsewhere = {k["record"].get("command") for k in kept} - {shlex.join(command)}
    devices = sorted({k["result"].get("device", "?") for k in kept})
    return {
        **summary,
        "comparison": _comparison(table, summary, options),
        "provenance": provenance(command, options.device),
        "how": f"{options.jobs or 'as many as fit'} cells at a time, {options.threads or 'default'} threads each, "
        f"on {', '.join(devices)}",
        "made_elsewhere": sum(k["record"].get("command") in elsewhere for k in kept),
        "cells": [{"row": c.row.name, **c.kept} for c in cells if c.kept is not None],
        "missing": [{"row": c.row.name, **c.cell.config()} for c in cells if c.kept is None],
    }


def _comparison(table: Table, summary: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """What is compared with what, in sentences."""
    categories, seeds = summary["categories"], summary["seeds"]
    epochs = ", ".join(
        f"{name} {' or '.join(map(str, numbers)) or 'as the recipe says'}"
        for name, numbers in summary["epochs"].items()
    )
    paper = f"**Paper**: {table.paper_backbone}, {PAPER_EPOCHS} epochs (SANFlow), {table.dataset}"
    paper += ", average over its 15 categories" if table.data == "mvtec" else ""
    ours = (
        f"**Ours**: {backbone_of(table, options)} ({options.weights} weights), {options.image_size} px, "
        f"{len(categories)} {'category' if len(categories) == 1 else 'categories'} ({', '.join(categories)}), "
        f"epochs: {epochs}; "
        f"seeds {', '.join(map(str, seeds))}; the model of the last epoch. ± is the standard deviation over the seeds."
    )
    lines = [
        f"{paper}. The column *these categories* is the mean of what it prints for ours, where it prints them.",
        ours,
    ]
    if table.notes:
        lines.append(table.notes)
    if options.set or options.fit:
        lines.append(f"Set by hand: `{' '.join((*options.set, *options.fit))}`.")
    differs = []
    if backbone_of(table, options) != table.backbone or options.weights == "random":
        differs.append("the backbone")
    if any(numbers not in ([], [PAPER_EPOCHS]) for numbers in summary["epochs"].values()):
        differs.append("the length of training")
    if differs:
        lines.append(
            f"**Other than in the paper: {' and '.join(differs)}.** So the level of a figure says little; compare the "
            "differences between rows, *paper: difference* with *ours: difference*."
        )
    if any(row["control"] for row in summary["rows"]):
        lines.append(
            "Rows marked *control* are not in the paper: they ask whether a predicted variance beats variance 1 and "
            "one learned constant a scale at the same number of optimiser steps."
        )
    if options.track_best > 1:
        lines.append(
            f"*Best on test* is the highest of {options.track_best} looks at the test images during training, for each "
            "metric and cell, which no user could have chosen; the published code reports such a figure."
        )
    return lines
