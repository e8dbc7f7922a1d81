import errno
import os
from pathlib import Path

import pytest

from semflow.errors import CheckpointError, DataError
from semflow.files import refuse_unwritable, remove_partial, replace_file, staged_folder, write_atomic, writing


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_write_atomic_replaces_the_file(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "scores.csv"
    write_atomic(target, "old")
    write_atomic(target, b"new")
    assert target.read_text() == "new"
    assert names(tmp_path) == ["deep", "deep/scores.csv"]


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt()])
def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    target = write_atomic(tmp_path / "scores.csv", "old")
    write_bytes = Path.write_bytes

    def half(self: Path, content: bytes) -> int:
        write_bytes(self, content[: len(content) // 2])
        raise error

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(DataError if isinstance(error, OSError) else type(error)):
        write_atomic(target, "brand new")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["scores.csv"]


def test_write_atomic_escapes_undecodable_names(tmp_path: Path) -> None:
    name = b"M\xfcller.png".decode("utf-8", "surrogateescape")
    assert write_atomic(tmp_path / "page.html", f"ü {name}").read_text(encoding="utf-8") == "ü M\\udcfcller.png"


def test_staged_folder_appears_at_the_end(tmp_path: Path) -> None:
    output = tmp_path / "results"
    with staged_folder(output) as staged:
        (staged / "a.txt").write_text("a")
        assert not output.exists()
    assert names(tmp_path) == ["results", "results/a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_staged_folder_is_removed_after_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with staged_folder(tmp_path / "results") as staged:
            (staged / "a.txt").write_text("a")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == []


def test_staged_folder_replaces_only_an_empty_folder(tmp_path: Path) -> None:
    output = tmp_path / "results"
    output.mkdir()
    with staged_folder(output) as staged:
        (staged / "a.txt").write_text("first")
    with pytest.raises(DataError, match=r"results must be .*not empty"), staged_folder(output):
        pytest.fail("the block ran")
    with pytest.raises(DataError, match=r"a.txt must be .*got a file"), staged_folder(output / "a.txt"):
        pytest.fail("the block ran")
    assert (output / "a.txt").read_text() == "first"


def test_staged_folder_replaces_only_marked_folders(tmp_path: Path) -> None:
    output = tmp_path / "results"
    for content in ("first", "second"):
        with staged_folder(output, replaces="mark.json") as staged:
            (staged / "mark.json").write_text(content)
            (staged / f"{content}.txt").touch()
    assert names(output) == ["mark.json", "second.txt"]
    (output / "mark.json").unlink()
    with pytest.raises(DataError, match="not empty"), staged_folder(output, replaces="mark.json"):
        pytest.fail("the block ran")


@pytest.mark.parametrize("durable", [False, True])
def test_replace_file_shows_the_old_content_while_writing(tmp_path: Path, durable: bool) -> None:
    target = write_atomic(tmp_path / "a.txt", "old")

    def write(file: Path) -> None:
        file.write_text("new")
        assert target.read_text() == "old"
        assert file.parent == target.parent

    replace_file(target, write, durable)
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("code", "end"), [(errno.ENOSPC, "No space left on device; free some space, or wait"), (errno.EROFS, "; wait")]
)
def test_writing_names_the_file_and_the_advice(code: int, end: str) -> None:
    with pytest.raises(CheckpointError) as caught, writing(Path("a"), "wait", CheckpointError):
        raise OSError(code, os.strerror(code))
    assert str(caught.value).startswith("a must be writable, but got ")
    assert str(caught.value).endswith(end)


def test_remove_partial_leaves_other_files(tmp_path: Path) -> None:
    (tmp_path / ".a[1].txt.01234567.partial").touch()
    (tmp_path / ".b.01234567.partial").mkdir()
    (tmp_path / ".b.01234567.partial" / "half").touch()
    kept = [".a1.txt.01234567.partial", ".a[1].txt.mine", "a[1].txt"]
    for name in kept:
        (tmp_path / name).touch()
    remove_partial(tmp_path, "a[1].txt", "b")
    assert names(tmp_path) == kept
    remove_partial(tmp_path)
    assert names(tmp_path) == kept[1:]


def test_refuse_unwritable_names_a_file_among_the_parents(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / "new" / "results")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file must be a folder, but got a file; choose a location other than"):
        refuse_unwritable(tmp_path / "file" / "results")
