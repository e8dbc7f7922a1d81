"""A table of kept cells: the paper's figures, ours with their spread over the seeds, and the differences."""

import statistics
from collections.abc import Sequence
from typing import Any

from ..paper import PaperRow, load, lookup
from ..shared.figures import mean_per_seed, spread
from .planning import Planned
from .tables import Row, Table

COST = ("steps", "trained_parameters", "train_seconds", "train_cpu_seconds", "evaluate_seconds", "peak_memory_mb")


def assemble(table: Table, rows: Sequence[Row], cells: Sequence[Planned]) -> dict[str, Any]:
    """Return the table as plain data, in percent.

    A figure is the mean over the categories for each seed, and then mean and standard deviation over the seeds for
    which all categories are finished. Differences between two rows are taken seed by seed.
    """
    categories = list(dict.fromkeys(c.key.category for c in cells))
    return {
        "table": table.name,
        "title": table.title,
        "metrics": list(table.metrics),
        "categories": categories,
        "seeds": list(dict.fromkeys(c.key.seed for c in cells)),
        "epochs": _epochs(cells),
        "rows": [_row(table, row, rows, cells, categories) for row in rows],
        "others": _others(table, rows, categories),
        "misprints": _misprints(table, rows),
        "warnings": _warnings(rows, cells),
        "done": sum(c.kept is not None for c in cells),
        "planned": len(cells),
    }


def _row(
    table: Table, row: Row, rows: Sequence[Row], cells: Sequence[Planned], categories: list[str]
) -> dict[str, Any]:
    mine = [c for c in cells if c.row.name == row.name]
    against = next((r for r in rows if r.name == row.against), None)
    theirs = [c for c in cells if against is not None and c.row.name == against.name]
    metrics: dict[str, Any] = {}
    for metric in table.metrics:
        paper = _paper(table, row, metric, categories)
        values = _values(mine, metric)
        ours = mean_per_seed(values, categories)
        expected = paper["here"] if paper["here"] is not None else paper["all"]
        difference = statistics.fmean(ours.values()) - expected if expected is not None and ours else None
        entry: dict[str, Any] = {"paper": paper, "ours": spread(ours), "difference": difference, "against": None}
        if against is not None:
            others = mean_per_seed(_values(theirs, metric), categories)
            entry["against"] = {
                "row": against.name,
                "paper": _difference(paper, _paper(table, against, metric, categories)),
                "ours": spread({s: ours[s] - others[s] for s in ours if s in others}),
            }
        entry["best_on_test"] = spread(mean_per_seed(_values(mine, metric, best=True), categories))
        entry["categories"] = {
            category: {
                "paper": _paper(table, row, metric, [category])["here"],
                "ours": spread(mean_per_seed(values, [category])),
            }
            for category in categories
        }
        metrics[metric] = entry
    about = {"row": row.name, "text": row.text, "control": row.control, "recipe": row.recipe}
    return {**about, "settings": dict(row.settings), "metrics": metrics, "cost": _cost(mine)}


def _values(cells: Sequence[Planned], metric: str, best: bool = False) -> dict[tuple[str, int], float]:
    """Return a metric in percent by category and seed."""
    found = {}
    for c in cells:
        result = c.kept["result"] if c.kept else {"metrics": {}}
        value = result.get("best", {}).get(metric, {}).get("value") if best else result["metrics"].get(metric)
        if value is not None:
            found[c.key.category, c.key.seed] = 100 * value
    return found


def _paper(table: Table, row: Row, metric: str, categories: Sequence[str]) -> dict[str, float | None]:
    """Return the printed figures: `all`, the paper's average, and `here`, the mean over our categories."""
    printed = lookup(row.paper, metric, table.dataset, table.paper_backbone)
    here = next((m for m in (p.mean(categories) for p in printed) if m is not None), None)
    return {"all": float(printed[0].average) if printed else None, "here": None if here is None else float(here)}


def _difference(a: dict[str, float | None], b: dict[str, float | None]) -> float | None:
    """Return the printed difference over our categories, or else between the averages."""
    for kind in ("here", "all"):
        x, y = a[kind], b[kind]
        if x is not None and y is not None:
            return x - y
    return None


def _others(table: Table, rows: Sequence[Row], categories: Sequence[str]) -> list[dict[str, Any]]:
    """Return the printed figures of methods that are not rows."""
    mine = {row.name for row in (*table.rows, *rows)}
    found = []
    for p in load(table.others).rows if table.others else ():
        if p.method not in mine and p.metric in table.metrics:
            here = p.mean(categories)
            figures = {"all": float(p.average), "here": None if here is None else float(here)}
            found.append({"method": p.method, "backbone": p.backbone, "metric": p.metric, **figures})
    return found


def _misprints(table: Table, rows: Sequence[Row]) -> list[str]:
    printed: list[tuple[str, PaperRow | None]] = [
        (name, load(name).find(method, metric, table.dataset, table.paper_backbone))
        for row in rows
        for name, method in row.paper
        for metric in table.metrics
    ]
    if table.others:
        printed += [(table.others, p) for p in load(table.others).rows if p.metric in table.metrics]
    found = [
        f"{name}, {p.method}, {mark.category}: likely {mark.likely}; {mark.why}"
        for name, p in printed
        for mark in (p.misprints if p else ())
    ]
    return list(dict.fromkeys(found))


def _epochs(cells: Sequence[Planned]) -> dict[str, list[int]]:
    """Return the epochs of each category; none while the recipe's own number is unknown."""
    found: dict[str, set[int]] = {}
    for c in cells:
        epochs = c.kept["result"].get("epochs") if c.kept else c.cell.fit.get("epochs") if c.cell else None
        found.setdefault(c.key.category, set()).update([] if epochs is None else [epochs])
    return {category: sorted(numbers) for category, numbers in found.items()}


def _cost(cells: Sequence[Planned]) -> dict[str, Any] | None:
    results = [c.kept["result"] for c in cells if c.kept]
    values = {name: [r[name] for r in results if r.get(name) is not None] for name in COST}
    return {name: statistics.fmean(v) if v else None for name, v in values.items()} if results else None


def _warnings(rows: Sequence[Row], cells: Sequence[Planned]) -> list[str]:
    """Return a line for each pair of compared rows that took different numbers of optimizer steps."""
    steps: dict[tuple[str, str], set[Any]] = {}
    for c in cells:
        if c.kept:
            steps.setdefault((c.row.name, c.key.category), set()).add(c.kept["result"].get("steps"))
    return [
        f"{row.name} and {row.against} took different numbers of optimizer steps on {category}: "
        f"{sorted(mine)} and {sorted(theirs)}"
        for row in rows
        for category in dict.fromkeys(c.key.category for c in cells)
        if (mine := steps.get((row.name, category)))
        and (theirs := steps.get((row.against, category)))
        and mine != theirs
    ]
