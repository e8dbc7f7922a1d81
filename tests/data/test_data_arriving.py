"""Files that other programs are still writing."""

import os
from pathlib import Path

import pytest

from semflow.data import arriving
from semflow.data.arriving import Arrivals, Arrived
from semflow.data.walking import scan, scan_one
from semflow.errors import DataError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("semflow.data.arriving.time.monotonic", clock)
    return clock


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bool | None]:
    """Return what the system says about open files: the last item."""
    answers: list[bool | None] = [False]
    monkeypatch.setattr(arriving, "is_being_written", lambda _: answers[-1])
    return answers


def read(path: Path) -> str:
    text = path.read_text()
    if not text.endswith("."):
        raise DataError("cut")
    return text


def after(clock: Clock, seconds: float, arrivals: Arrivals[str]) -> list[str]:
    clock.now += seconds
    return [arrived.content for arrived in arrivals.whole()]


def test_file_is_read_when_it_is_whole(tmp_path: Path, clock: Clock, opened: list[bool | None]) -> None:
    path, arrivals = tmp_path / "a", Arrivals(read)
    path.write_text("half")
    arrivals.note(path)
    for _ in range(3):  # a slow writer, which opens the file anew each time
        assert after(clock, arriving.PATIENCE - 0.1, arrivals) == []
        path.write_text(path.read_text() + " more")
    path.write_text("whole.")
    assert after(clock, 1.0, arrivals) == ["whole."]
    assert len(arrivals) == 0


def test_file_that_stays_broken_is_given_up_and_one_that_is_removed_is_forgotten(
    tmp_path: Path, clock: Clock, opened: list[bool | None]
) -> None:
    arrivals = Arrivals(read)
    for name in "ab":
        (tmp_path / name).write_text("half")
        arrivals.note(tmp_path / name)
    assert after(clock, 0.0, arrivals) == []
    (tmp_path / "b").unlink()
    assert after(clock, arriving.PATIENCE + 0.1, arrivals) == ["cut"]
    assert len(arrivals) == 0


@pytest.mark.parametrize(
    ("answer", "seconds"), [(None, arriving.QUIET), (True, arriving.OPEN)], ids=["unknown", "open"]
)
def test_file_that_decodes_must_be_quiet(
    answer: bool | None, seconds: float, tmp_path: Path, clock: Clock, opened: list[bool | None]
) -> None:
    opened.append(answer)
    path, arrivals = tmp_path / "a", Arrivals(read)
    path.write_text("first.")
    arrivals.note(path)
    assert after(clock, 0.0, arrivals) == []
    assert after(clock, seconds - 0.1, arrivals) == []
    path.write_text("first. second.")
    assert after(clock, seconds - 0.1, arrivals) == []
    assert after(clock, seconds + 0.1, arrivals) == ["first. second."]


def test_file_that_stays_broken_while_open_has_more_time(
    tmp_path: Path, clock: Clock, opened: list[bool | None]
) -> None:
    opened.append(True)
    arrivals = Arrivals(read)
    (tmp_path / "a").write_text("half")
    arrivals.note(tmp_path / "a")
    assert after(clock, 0.0, arrivals) == []
    assert after(clock, arriving.PATIENCE + 1, arrivals) == []
    assert after(clock, arriving.LONGEST, arrivals) == ["cut"]


def test_file_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, clock: Clock, opened: list[bool | None]
) -> None:
    path = tmp_path / "a"

    def change(_: Path) -> str:
        text = path.read_text()
        if text == "old":
            path.write_text("newer")
        return text

    arrivals = Arrivals(change)
    path.write_text("old")
    arrivals.note(path)
    assert after(clock, 0.0, arrivals) == []
    assert after(clock, 1.0, arrivals) == ["newer"]


def test_broken_files_keep_no_other_waiting(tmp_path: Path, clock: Clock, opened: list[bool | None]) -> None:
    arrivals = Arrivals(read)
    for name, text in (("a", "half"), ("b", "whole.")):
        (tmp_path / name).write_text(text)
        arrivals.note(tmp_path / name)
    found: list[Arrived[str]] = list(arrivals.whole())
    assert [arrived.path.name for arrived in found] == ["b"]
    assert len(arrivals) == 1


@pytest.mark.parametrize("mode", ["w", "a", "r+"])
def test_linux_tells_who_writes(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("text")
    with path.open(mode):
        assert arriving.is_being_written(path) in (True, None)
    with path.open():
        assert arriving.is_being_written(path) in (False, None)
    assert arriving.is_being_written(tmp_path / "none") is None


def test_one_path_is_judged_as_in_a_search_of_the_whole_folder(tmp_path: Path) -> None:
    for name in ("a.png", ".b.png", "c.mp4", "d.txt", "e/f.png", "e/g/h.png", ".i/j.png", "e/@eaDir/k.png", "l.PNG"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "m.png").symlink_to(tmp_path / "none")
    (tmp_path / "n").symlink_to(tmp_path / "none")
    whole = scan(tmp_path)
    files = [Path(folder, name) for folder, _, names in os.walk(tmp_path) for name in names]
    found = [image for path in files for image in scan_one(path, tmp_path).images]
    assert sorted(found) == sorted(whole.images)
    assert {item for path in files for item in scan_one(path, tmp_path).passed_over} == set(whole.passed_over)
    assert scan_one(tmp_path / "none", tmp_path) == ([], [])
    assert sorted(scan_one(tmp_path / "e", tmp_path).images) == sorted(
        image for image in whole.images if "e" in image.relative_to(tmp_path).parts
    )
