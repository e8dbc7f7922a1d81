"""Every kind of bad input gives the result that the table lists."""

from collections.abc import Callable

import pytest

from helpers.bad_rows import Refused, Row, Workspace, observe
from helpers.bad_table import PAGE, TABLE, page_table, wrong
from semflow.errors import SemflowError

ROWS = [row for rows in TABLE.values() for row in rows]
GROUPS = {row.name: group for group, rows in TABLE.items() for row in rows}


@pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:Image size", "ignore:.*exceeds limit")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_bad_input(row: Row, workspace: Workspace, record_property: Callable[[str, object], None]) -> None:
    record_property("group", GROUPS[row.name])
    record_property("refused", int(isinstance(row.expected, Refused)))
    if reason := row.needs():
        pytest.skip(reason)
    assert not wrong(row, observe(row, workspace))


def test_names_of_rows_are_unique() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_rows_detect_wrong_outcomes() -> None:
    row = Row("x", lambda workspace: None, Refused(SemflowError, ("lost",)))
    from helpers.bad_rows import Observed, Works

    assert "it works" in wrong(row, Observed(value=1))
    assert "lost" in wrong(row, Observed(error=SemflowError("something else")))
    assert "expected SemflowError" in wrong(row, Observed(error=type("Other", (SemflowError,), {})("lost")))
    assert not wrong(row, Observed(error=SemflowError("lost")))
    assert "expected True" in wrong(Row("y", row.act, Works("")), Observed(value=False))


def test_results_contain_the_table() -> None:
    assert page_table() in PAGE.read_text(encoding="utf-8"), "run PYTHONPATH=tests python -m helpers.bad_table --write"
