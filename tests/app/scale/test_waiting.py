"""Rows are passed on, with their errors; what can never come is not waited for."""

import threading
import time
from collections.abc import Iterator

import pytest

from semflow.app.scale import waiting
from semflow.app.scale.waiting import rows_while_possible
from semflow.errors import ProcessError


def test_rows_and_the_error_that_ends_them() -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("three")

    found = rows_while_possible(failing(), lambda: "", 1.0)
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(KeyError, match="three"):
        next(found)


def test_what_lacks_ends_it_only_while_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "EVERY", 0.02)
    hold = threading.Event()

    def slow() -> Iterator[int]:
        for number in range(5):
            time.sleep(0.1)
            yield number
        hold.wait(60)

    found = rows_while_possible(slow(), lambda: "a machine", 0.5)
    assert [next(found) for _ in range(5)] == list(range(5))  # together as long as the patience
    with pytest.raises(ProcessError, match=r"^a machine$"):
        next(found)
    hold.set()


def test_what_comes_back_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "EVERY", 0.02)
    said = iter(["gone"] * 5)
    came = threading.Event()

    def slow() -> Iterator[int]:
        came.wait(60)
        yield 7

    def lacking() -> str:
        now = next(said, "")
        if not now:
            came.set()
        return now

    assert list(rows_while_possible(slow(), lacking, 30.0)) == [7]


def test_whoever_stops_asking_ends_the_rows() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    found = rows_while_possible(endless(), lambda: "", 1.0)
    next(found)
    found.close()
    assert closed.wait(10)
