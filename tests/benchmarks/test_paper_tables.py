"""The transcribed tables: averages and values agree, except for marked misprints."""

import itertools
import re
from decimal import Decimal
from pathlib import Path

import pytest
from benchmarks.paper import NAMES, PaperRow, load, lookup

from semflow.errors import ConfigError

ROWS = [(name, row) for name in NAMES for row in load(name).rows]
WITH_VALUES = [(name, row) for name, row in ROWS if row.values]
TEXT = Path(__file__).resolve().parents[3] / "shared" / "paper" / "sanflow.txt"


def label(case: object) -> str:
    if isinstance(case, PaperRow):
        return f"{case.method}-{case.backbone}-{case.metric}"
    return str(case)


@pytest.mark.parametrize(("name", "row"), WITH_VALUES, ids=label)
def test_values_average_as_printed_unless_marked(name: str, row: PaperRow) -> None:
    mean = row.mean(load(name).categories)
    assert mean is not None
    fits = abs(mean - row.average) <= row.tolerance
    assert fits == ("average" not in {mark.category for mark in row.misprints}), f"{mean} against {row.average}"


def cells(row: PaperRow) -> dict[str, Decimal]:
    return {**row.values, "average": row.average}


def same(a: Decimal, b: Decimal) -> bool:
    """Equal at the coarser of the two printed precisions."""
    digits = min(max(0, -int(x.as_tuple().exponent)) for x in (a, b))
    return abs(a - b) <= Decimal(10) ** -digits / 2


def test_tables_agree_with_each_other_unless_marked() -> None:
    differ, marked = set(), set()
    for name, row in ROWS:
        for mark in row.misprints:
            if mark.against:
                marked.add((frozenset({name, mark.against}), row.method, row.metric, row.dataset, mark.category))
    compared = 0
    for (name_a, a), (name_b, b) in itertools.combinations(ROWS, 2):
        key = (a.method, a.metric, a.dataset)
        if key != (b.method, b.metric, b.dataset) or a.backbone != b.backbone or name_a == name_b:
            continue
        mine, theirs = cells(a), cells(b)
        for category in mine.keys() & theirs.keys():
            compared += 1
            if not same(mine[category], theirs[category]):
                differ.add((frozenset({name_a, name_b}), *key, category))
    assert compared > 200
    # Tables S3 and S4 repeat values of S2, so a mark against one of them is for all.
    repeats = {"tableS3": "tableS2", "tableS4": "tableS2"}
    merged = {(frozenset(repeats.get(name, name) for name in pair), *rest) for pair, *rest in differ}
    assert merged == marked


def test_marked_misprints_are_the_known_ones() -> None:
    marks = {(name, row.method, mark.category) for name, row in ROWS for mark in row.misprints}
    assert marks == {
        ("table2", "AE_SSIM", "average"),
        ("table2", "SANFlow", "transistor"),
        ("table3", "SANFlow", "cable"),
        ("table3", "DifferNet", "average"),
        ("table6", "3c", "average"),
        ("tableS1", "SANFlow", "transistor"),
        ("tableS1", "SANFlow", "average"),
        ("tableS5", "CFLOW-AD+SP", "average"),
    }


def test_likely_average_is_the_mean_of_the_values() -> None:
    for _, row in WITH_VALUES:
        values = dict(row.values)
        for mark in row.misprints:
            if mark.category in values:
                values[mark.category] = mark.likely
        for mark in row.misprints:
            if mark.category == "average":
                assert abs(sum(values.values()) / len(values) - mark.likely) <= row.tolerance


@pytest.mark.skipif(not TEXT.exists(), reason="needs the paper's text beside the repository")
@pytest.mark.parametrize(("name", "row"), WITH_VALUES, ids=label)
def test_values_are_in_the_text_of_the_paper(name: str, row: PaperRow) -> None:
    """The values of a row are in one line of the text; Tables 2 and 3 are printed by columns."""
    lines = TEXT.read_text(encoding="utf-8").splitlines()
    if name in ("table2", "table3"):
        number = name[-1]
        start = next(i for i, line in enumerate(lines) if line.startswith(f"Table {number}:"))
        columns = []
        for category in cells(row):
            line = next(x for x in lines[start:] if x.split("\t")[0].replace(" ", "_") == category)
            columns.append(re.sub(r"</?u>|\*\*", "", line).split("\t"))
        printed = [str(value) for value in cells(row).values()]
        assert printed in [list(column) for column in zip(*columns, strict=True)]
    else:
        words = "\t".join(str(value) for value in cells(row).values())
        assert any(line.endswith(words) for line in lines)


def test_lookup_returns_the_printed_rows() -> None:
    rows = lookup([("tableS2", "1b"), ("table4", "1b"), ("table4", "none")], "image_auroc", "MVTec AD")
    assert [row.average for row in rows] == [Decimal("98.2"), Decimal("98.2")]
    assert rows[0].mean(["screw", "toothbrush"]) == Decimal("94.4")
    assert rows[0].mean(["screw", "cashew"]) is None
    assert rows[1].mean(["screw"]) is None
    with pytest.raises(ConfigError, match="table9"):
        load("table9")
