"""Files of JSON lines, and moves that complete after a kill."""

import errno
import os
from pathlib import Path

import pytest

from semflow.errors import DataError
from semflow.files.lines import json_lines
from semflow.files.moving import move_file


@pytest.mark.parametrize("end", ["", '{"a": 2', '{"a": 2}', "\0" * 70_000])
def test_last_line_that_a_kill_has_cut_is_removed(end: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\nno JSON\n[3]\n' + end)
    with json_lines(path) as lines:
        lines.append({"a": 4})
        assert [line["a"] for line in lines.read()] == [1, 4]
    assert path.read_text() == '{"a": 1}\nno JSON\n[3]\n{"a": 4}\n'


def test_lines_are_of_one_process(tmp_path: Path) -> None:
    with json_lines(tmp_path / "new" / "a.jsonl"), pytest.raises(DataError, match="must not be in use"):
        json_lines(tmp_path / "new" / "a.jsonl").__enter__()


@pytest.mark.parametrize("links", [True, False])
def test_move_overwrites_nothing_and_completes(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:

        def fail(*_: object) -> None:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

        monkeypatch.setattr(os, "link", fail)
    source, target = tmp_path / "a.png", tmp_path / "done" / "a.png"
    source.write_text("new")
    os.utime(source, ns=(7_000_000_000, 7_000_000_000))
    assert move_file(source, target) == target
    assert not source.exists()
    assert target.stat().st_mtime_ns == 7_000_000_000
    source.write_text("other")
    assert move_file(source, target).name == "a-2.png"
    assert target.read_text() == "new"
    source.write_text("new")  # as if a kill had come between the copy and the removal
    assert move_file(source, target) == target
    assert not source.exists()
    assert move_file(source, target) == target  # nothing left to do
    source.symlink_to(target)
    assert move_file(source, target.with_name("link.png")).read_text() == "new"
    assert target.read_text() == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a-2.png", "a.png", "done", "link.png"]
