"""Figures over seeds, and Markdown tables of them."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def mean_per_seed(values: Mapping[tuple[str, int], float], categories: Sequence[str]) -> dict[int, float]:
    """Return the mean over the categories for each seed that has all of them.

    Args:
        values: by category and seed.
        categories: to average over.
    """
    seeds = sorted({seed for _, seed in values})
    return {
        seed: statistics.fmean(values[category, seed] for category in categories)
        for seed in seeds
        if all((category, seed) in values for category in categories)
    }


def spread(values: Mapping[int, float]) -> dict[str, Any] | None:
    """Return mean, standard deviation (None for one seed), seeds and values, or None without values."""
    if not values:
        return None
    numbers = list(values.values())
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return {"mean": statistics.fmean(numbers), "std": std, "seeds": list(values), "values": numbers}


def number(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """Return a number as text, and a dash for None."""
    return "-" if value is None else f"{value:{'+' if signed else ''}.{digits}f}"


def text_of(found: Mapping[str, Any] | None, digits: int = 2, signed: bool = False, factor: float = 1) -> str:
    """Return mean and standard deviation of a `spread` as text."""
    if found is None:
        return "-"
    std = "" if found["std"] is None else f" ± {factor * found['std']:.{digits}f}"
    return number(factor * found["mean"], digits, signed) + std


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows))
