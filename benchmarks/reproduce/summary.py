"""From finished cells to a table: the paper's figures, ours with their spread over seeds, and the differences."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..paper import PaperRow, load, lookup
from .cells import Cell
from .tables import Row, Table

__all__ = ["Planned", "assemble"]


@dataclass
class Planned:
    """A cell of a table, with what a store holds of it (`config`, `result`, `record`) or None."""

    row: Row
    cell: Cell
    kept: dict[str, Any] | None = None


def assemble(table: Table, rows: Sequence[Row], cells: Sequence[Planned]) -> dict[str, Any]:
    """The table as plain data, in percent.

    A figure is the mean over the categories for each seed, and then the mean and the standard deviation over the seeds
    that all categories are finished for. Differences between two rows are taken seed by seed.
    """
    categories = list(dict.fromkeys(c.cell.data.category for c in cells))
    seeds = list(dict.fromkeys(c.cell.seed for c in cells))
    found = [_row(table, row, rows, cells, categories, seeds) for row in rows]
    return {
        "table": table.name,
        "title": table.title,
        "metrics": list(table.metrics),
        "categories": categories,
        "seeds": seeds,
        "epochs": _epochs(cells),
        "rows": found,
        "others": _others(table, rows, categories),
        "misprints": _misprints(table, rows),
        "warnings": _warnings(rows, cells),
        "done": sum(c.kept is not None for c in cells),
        "planned": len(cells),
    }


def _row(
    table: Table, row: Row, rows: Sequence[Row], cells: Sequence[Planned], categories: list[str], seeds: list[int]
) -> dict[str, Any]:
    mine = [c for c in cells if c.row.name == row.name]
    against = next((r for r in rows if r.name == row.against), None)
    theirs = [c for c in cells if against is not None and c.row.name == against.name]
    metrics: dict[str, Any] = {}
    for metric in table.metrics:
        paper = _paper(table, row, metric, categories)
        ours = _per_seed(mine, metric, categories, seeds)
        entry: dict[str, Any] = {"paper": paper, "ours": _spread(ours), "difference": None, "against": None}
        expected = paper["here"] if paper["here"] is not None else paper["all"]
        if expected is not None and ours:
            entry["difference"] = statistics.fmean(ours.values()) - expected
        if against is not None:
            reference = _paper(table, against, metric, categories)
            others = _per_seed(theirs, metric, categories, seeds)
            entry["against"] = {
                "row": against.name,
                "paper": _difference(paper, reference),
                "ours": _spread({s: ours[s] - others[s] for s in ours if s in others}),
            }
        best = _per_seed(mine, metric, categories, seeds, best=True)
        entry["best_on_test"] = _spread(best)
        entry["categories"] = {
            category: {
                "paper": _paper(table, row, metric, [category])["here"],
                "ours": _spread(_per_seed(mine, metric, [category], seeds)),
            }
            for category in categories
        }
        metrics[metric] = entry
    return {
        "row": row.name,
        "text": row.text,
        "control": row.control,
        "recipe": row.recipe,
        "arguments": dict(row.arguments),
        "metrics": metrics,
        "cost": _cost(mine),
    }


def _per_seed(
    cells: Sequence[Planned], metric: str, categories: Sequence[str], seeds: Sequence[int], best: bool = False
) -> dict[int, float]:
    """Mean over the categories in percent, for each seed that has them all."""
    values: dict[tuple[str, int], float] = {}
    for c in cells:
        if c.kept is None:
            continue
        result = c.kept["result"]
        value = result.get("best", {}).get(metric, {}).get("value") if best else result["metrics"].get(metric)
        if value is not None:
            values[c.cell.data.category, c.cell.seed] = 100 * value
    return {
        seed: statistics.fmean(values[category, seed] for category in categories)
        for seed in seeds
        if all((category, seed) in values for category in categories)
    }


def _spread(values: Mapping[int, float]) -> dict[str, Any] | None:
    if not values:
        return None
    numbers = list(values.values())
    return {
        "mean": statistics.fmean(numbers),
        "std": statistics.stdev(numbers) if len(numbers) > 1 else None,
        "seeds": list(values),
    }


def _paper(table: Table, row: Row, metric: str, categories: Sequence[str]) -> dict[str, float | None]:
    """What the paper prints: `all`, its average, and `here`, the mean over our categories."""
    printed = lookup(row.paper, metric, table.dataset, table.paper_backbone)
    here = next((m for m in (p.mean(categories) for p in printed) if m is not None), None)
    return {
        "all": float(printed[0].average) if printed else None,
        "here": None if here is None else float(here),
    }


def _difference(a: Mapping[str, float | None], b: Mapping[str, float | None]) -> float | None:
    """Over our categories if the paper prints both there, else between its averages."""
    for kind in ("here", "all"):
        x, y = a[kind], b[kind]
        if x is not None and y is not None:
            return x - y
    return None


def _others(table: Table, rows: Sequence[Row], categories: Sequence[str]) -> list[dict[str, Any]]:
    if not table.others:
        return []
    mine = {row.name for row in (*table.rows, *rows)}
    found = []
    for p in load(table.others).rows:
        if p.method not in mine and p.metric in table.metrics:
            here = p.mean(categories)
            found.append(
                {
                    "method": p.method,
                    "backbone": p.backbone,
                    "metric": p.metric,
                    "all": float(p.average),
                    "here": None if here is None else float(here),
                }
            )
    return found


def _misprints(table: Table, rows: Sequence[Row]) -> list[str]:
    printed: list[tuple[str, PaperRow]] = []
    for row in rows:
        for name, method in row.paper:
            for metric in table.metrics:
                p = load(name).find(method, metric, table.dataset, table.paper_backbone)
                if p is not None:
                    printed.append((name, p))
    if table.others:
        printed += [(table.others, p) for p in load(table.others).rows if p.metric in table.metrics]
    found = [
        f"{name}, {p.method}, {mark.category}: likely {mark.likely}; {mark.why}"
        for name, p in printed
        for mark in p.misprints
    ]
    return list(dict.fromkeys(found))


def _epochs(cells: Sequence[Planned]) -> dict[str, list[int]]:
    """Epochs by category, as trained or asked for; none while the recipes' own number is not known."""
    found: dict[str, set[int]] = {}
    for c in cells:
        epochs = c.kept["result"].get("epochs") if c.kept else c.cell.fit.get("epochs")
        found.setdefault(c.cell.data.category, set()).update([] if epochs is None else [epochs])
    return {category: sorted(numbers) for category, numbers in found.items()}


def _cost(cells: Sequence[Planned]) -> dict[str, Any] | None:
    results = [c.kept["result"] for c in cells if c.kept is not None]
    if not results:
        return None
    names = ("steps", "trained_parameters", "train_seconds", "train_cpu_seconds", "evaluate_seconds", "peak_memory_mb")
    return {
        name: statistics.fmean(values) if (values := [r[name] for r in results if r.get(name) is not None]) else None
        for name in names
    }


def _warnings(rows: Sequence[Row], cells: Sequence[Planned]) -> list[str]:
    """Rows that are compared with each other but did not take the same number of optimiser steps."""
    steps: dict[tuple[str, str], set[Any]] = {}
    for c in cells:
        if c.kept is not None:
            steps.setdefault((c.row.name, c.cell.data.category), set()).add(c.kept["result"].get("steps"))
    found = []
    for row in rows:
        for category in dict.fromkeys(c.cell.data.category for c in cells):
            mine, theirs = steps.get((row.name, category)), steps.get((row.against, category))
            if mine and theirs and mine != theirs:
                found.append(
                    f"{row.name} and {row.against} took different numbers of optimiser steps on {category}: "
                    f"{sorted(mine)} and {sorted(theirs)}"
                )
    return found
