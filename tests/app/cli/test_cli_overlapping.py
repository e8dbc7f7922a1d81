"""Files that are read and written while images are scored."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from helpers.cli_cases import hidden, make_photos, words
from semflow.app.cli import main, overlapping, predict
from semflow.app.cli.overlapping import ahead, behind

WAIT = 20.0  # seconds that are never spent unless a test fails


def test_next_batch_is_read_while_one_is_used() -> None:
    following = threading.Event()

    def batches() -> Iterator[int]:
        yield 0
        following.set()
        yield 1

    with closing(ahead(batches())) as read:
        assert next(read) == 0
        assert following.wait(WAIT)
        assert list(read) == [1]


def test_one_batch_is_read_ahead_and_closed_with_its_thread() -> None:
    read: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(9):
            read.append(number)
            yield number

    before = threading.active_count()
    with closing(ahead(batches())) as found:
        for number in found:
            assert len(read) <= number + 2
            if number == 3:
                break
    assert threading.active_count() == before
    assert len(read) <= 5


def test_batch_is_scored_while_the_files_of_the_last_are_written() -> None:
    scored = threading.Event()

    def batches() -> Iterator[list[Callable[[], object]]]:
        yield [lambda: scored.wait(WAIT), lambda: "b"]
        scored.set()
        yield [lambda: "c"]

    assert list(behind(batches())) == [True, "b", "c"]


def test_calls_are_made_on_several_threads_and_two_batches_wait_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """The results are in order although the first call of two ends last."""
    monkeypatch.setattr(overlapping.os, "cpu_count", lambda: 2)
    given: list[int] = []
    threads: set[int] = set()
    odd = threading.Event()

    def call(number: int) -> int:
        threads.add(threading.get_ident())
        if number == 1:
            odd.set()
        assert number or odd.wait(WAIT)
        return number

    def batches() -> Iterator[list[Callable[[], int]]]:
        for number in range(0, 30, 3):
            given.append(number)
            yield [lambda k=k: call(k) for k in range(number, number + 3)]  # type: ignore[misc]

    found = []
    for number in behind(batches()):
        assert given[-1] <= number + 5
        found.append(number)
    assert found == list(range(30))
    assert len(threads) == 2
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("place", ["a batch", "a call"])
def test_error_comes_after_all_results_before_it(place: str, overlap: bool) -> None:
    later: list[str] = []

    def fail() -> str:
        raise ValueError("no space")

    def batches() -> Iterator[list[Callable[[], str]]]:
        yield [lambda: "a", lambda: "b"]
        if place == "a batch":
            yield [lambda: "c"]
            fail()
        yield [lambda: "c", fail, lambda: later.append("d") or "d"]
        yield [lambda: later.append("e") or "e"]  # submitted while the call that fails is made
        yield [lambda: later.append("f") or "f"]

    found: list[str] = []
    before = threading.active_count()
    with pytest.raises(ValueError, match="no space"), closing(behind(batches(), overlap)) as results:
        found.extend(results)
    assert found == ["a", "b", "c"]
    assert "f" not in later
    assert threading.active_count() == before


def test_interrupt_waits_for_the_call_that_has_begun_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    began, canceled, made = threading.Event(), threading.Event(), []

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            canceled.set()
            super().shutdown(wait)

    def first() -> None:
        began.set()
        assert canceled.wait(WAIT)
        made.append("first")

    def batches() -> Iterator[list[Callable[[], None]]]:
        yield [first, lambda: made.append("second")]
        assert began.wait(WAIT)
        raise KeyboardInterrupt

    monkeypatch.setattr(overlapping, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(overlapping, "WRITERS", 1)
    with pytest.raises(KeyboardInterrupt):
        list(behind(batches()))
    assert made == ["first"]


@pytest.mark.parametrize("more", [[], ["--workers", "1"]])
def test_predict_scores_while_it_reads_and_writes(
    more: list[str], shared_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are written on other threads; the journal follows in the order of the images."""
    photos, threads, order = make_photos(tmp_path), set(), []
    write, add = predict.write_image, predict.Unfinished.add

    def noted(*arguments: object) -> object:
        threads.add(threading.get_ident())
        return write(*arguments)  # type: ignore[arg-type]

    def added(self: object, key: str, *arguments: object) -> None:
        assert threading.current_thread() is threading.main_thread()
        for name in arguments[1]:  # type: ignore[attr-defined]
            assert (self.folder / name).is_file()  # type: ignore[attr-defined]
        order.append(key)
        add(self, key, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(predict, "write_image", noted)
    monkeypatch.setattr(predict.Unfinished, "add", added)
    assert main(words(shared_run, photos, tmp_path / "results", *more)) == 0
    images = [record["image"] for record in json.loads((tmp_path / "results" / "scores.json").read_text())["images"]]
    assert order == images
    assert threading.get_ident() not in threads
    assert hidden(tmp_path) == []
