"""Rows of a pipeline, errors, and missing resources."""

import itertools
import threading
from collections.abc import Iterator

import pytest

from semflow.app.scale import waiting
from semflow.app.scale.waiting import rows_while_possible
from semflow.errors import ProcessError


def test_rows_and_errors_are_passed_on() -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("three")

    found = rows_while_possible(failing(), lambda: "", 1.0)
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(KeyError, match="three"):
        next(found)


class Clock:
    """Stands in for the module `time`."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_patience_counts_only_time_without_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, release, delivered, hold = Clock(), threading.Semaphore(0), threading.Event(), threading.Event()
    monkeypatch.setattr(waiting, "time", clock)
    monkeypatch.setattr(waiting, "EVERY", 0.001)
    calls = itertools.count(1)

    def slow() -> Iterator[int]:
        for number in range(5):
            release.acquire()
            yield number
            delivered.set()
        hold.wait(60)

    def lacking() -> str:
        clock.now += 0.2
        if next(calls) in range(2, 11, 2):  # a row after every 0.4 s, less than the patience
            release.release()
            delivered.wait(60)
            delivered.clear()
        return "a machine"

    found = rows_while_possible(slow(), lacking, 0.5)
    assert [next(found) for _ in range(5)] == list(range(5))
    with pytest.raises(ProcessError, match=r"^a machine$"):
        next(found)
    assert clock.now == pytest.approx(5 * 0.4 + 0.6)
    hold.set()


def test_resources_may_return_within_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "EVERY", 0.001)
    messages = iter(["gone"] * 5)
    back = threading.Event()

    def slow() -> Iterator[int]:
        back.wait(60)
        yield 7

    def lacking() -> str:
        message = next(messages, "")
        if not message:
            back.set()
        return message

    assert list(rows_while_possible(slow(), lacking, 30.0)) == [7]


def test_closing_ends_the_pipeline() -> None:
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
