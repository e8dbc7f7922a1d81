"""Loading of the printed tables."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path

from semflow.errors import ConfigError

FOLDER = Path(__file__).parent
NAMES = (
    *(f"table{number}" for number in range(1, 7)),
    *("margin", "visa", "cifar10"),
    *(f"tableS{number}" for number in range(1, 7)),
)


@dataclass(frozen=True)
class Misprint:
    """A printed value that is wrong.

    Args:
        category: of the value, or `average`.
        likely: the correct value.
        why: the reason.
        against: the table that prints another value; empty if the row itself shows it.
    """

    category: str
    likely: Decimal
    why: str
    against: str = ""


@dataclass(frozen=True)
class PaperRow:
    """One method under one metric: values in percent by category, as printed, and their printed average."""

    method: str
    metric: str
    dataset: str
    backbone: str
    average: Decimal
    values: Mapping[str, Decimal] = field(default_factory=dict)
    setting: Mapping[str, str] = field(default_factory=dict)
    misprints: tuple[Misprint, ...] = ()

    @property
    def tolerance(self) -> Decimal:
        """The largest difference between mean and printed average that rounding allows: half a unit of each."""
        digits = max((_digits(v) for v in self.values.values()), default=0)
        return (Decimal(10) ** -digits + Decimal(10) ** -_digits(self.average)) / 2

    def mean(self, categories: Iterable[str]) -> Decimal | None:
        """Return the mean of the printed values over categories, or None if one of them is not printed."""
        wanted = list(categories)
        if not wanted or not set(wanted) <= set(self.values):
            return None
        return sum((self.values[c] for c in wanted), Decimal()) / len(wanted)


@dataclass(frozen=True)
class PaperTable:
    """A printed table."""

    name: str
    title: str
    categories: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    notes: str = ""

    def find(self, method: str, metric: str, dataset: str, backbone: str = "WRN-50") -> PaperRow | None:
        """Return the row of a method, or None; a row without a stated backbone matches all backbones."""
        mine = [r for r in self.rows if (r.method, r.metric, r.dataset) == (method, metric, dataset)]
        return next((r for r in mine if r.backbone in (backbone, "not stated")), None)


@cache
def load(name: str) -> PaperTable:
    """Return a table by name, such as `table5`, `tableS2`, `margin`."""
    if name not in NAMES:
        raise ConfigError(f"name must be one of {', '.join(NAMES)}, but got {name!r}")
    raw = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    categories = tuple(raw.get("categories", "").split())
    rows = []
    for row in raw["rows"]:
        words = row.get("values", "").split()
        values = dict(zip(categories, map(Decimal, words), strict=True)) if words else {}
        marks = row.get("misprints", [])
        rows.append(
            PaperRow(
                **{key: row[key] for key in ("method", "metric", "dataset", "backbone")},
                average=Decimal(row["average"]),
                values=values,
                setting=row.get("setting", {}),
                misprints=tuple(Misprint(**{**mark, "likely": Decimal(mark["likely"])}) for mark in marks),
            )
        )
    return PaperTable(name, raw["title"], categories, tuple(rows), raw.get("notes", ""))


def lookup(
    references: Iterable[tuple[str, str]], metric: str, dataset: str, backbone: str = "WRN-50"
) -> list[PaperRow]:
    """Return the printed rows of (table, method) pairs for one metric."""
    found = (load(table).find(method, metric, dataset, backbone) for table, method in references)
    return [row for row in found if row is not None]


def _digits(value: Decimal) -> int:
    return max(0, -int(value.as_tuple().exponent))
