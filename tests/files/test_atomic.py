from pathlib import Path

import pytest

from semflow.errors import DataError
from semflow.files import staged_folder, write_atomic


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "scores.csv"
    write_atomic(target, "old")
    write_atomic(target, b"new")
    assert target.read_text() == "new"
    assert names(tmp_path) == ["deep", "deep/scores.csv"]


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    target = write_atomic(tmp_path / "scores.csv", "old")
    whole = Path.write_bytes

    def half(self: Path, content: bytes) -> int:
        whole(self, content[: len(content) // 2])
        raise error

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(DataError if isinstance(error, OSError) else type(error)):
        write_atomic(target, "brand new")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["scores.csv"]


def test_text_may_hold_names_that_are_no_unicode(tmp_path: Path) -> None:
    name = b"M\xfcller.png".decode("utf-8", "surrogateescape")
    assert write_atomic(tmp_path / "page.html", f"ü {name}").read_text(encoding="utf-8") == "ü M\\udcfcller.png"


def test_a_staged_folder_is_not_there_until_the_end(tmp_path: Path) -> None:
    output = tmp_path / "results"
    with staged_folder(output) as staged:
        (staged / "a.txt").write_text("a")
        assert not output.exists()
    assert names(tmp_path) == ["results", "results/a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_staged_folder_vanishes_with_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with staged_folder(tmp_path / "results") as staged:
            (staged / "a.txt").write_text("a")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == []


def test_a_staged_folder_takes_the_place_of_an_empty_one_only(tmp_path: Path) -> None:
    output = tmp_path / "results"
    output.mkdir()
    with staged_folder(output) as staged:
        (staged / "a.txt").write_text("first")
    with pytest.raises(DataError, match=r"results must be .*not empty"), staged_folder(output):
        pytest.fail("the block must not run")
    with pytest.raises(DataError, match=r"a.txt must be .*got a file"), staged_folder(output / "a.txt"):
        pytest.fail("the block must not run")
    assert (output / "a.txt").read_text() == "first"


def test_a_staged_folder_replaces_only_what_was_made_in_the_same_way(tmp_path: Path) -> None:
    output = tmp_path / "results"
    for content in ("first", "second"):
        with staged_folder(output, replaces="mark.json") as staged:
            (staged / "mark.json").write_text(content)
            (staged / f"{content}.txt").touch()
    assert names(output) == ["mark.json", "second.txt"]
    (output / "mark.json").unlink()
    with pytest.raises(DataError, match="not empty"), staged_folder(output, replaces="mark.json"):
        pytest.fail("the block must not run")
