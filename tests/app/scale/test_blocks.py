"""Blocks of a listing: each image in one of them; committed whole or not at all; never mixed with another run's."""

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semflow.app.scale import BlockStore, Committed, Listing
from semflow.app.scale.rows import commit_block
from semflow.errors import DataError

ORIGIN = {"--model": "m", "--false-alarm-rate": 0.1}


@given(st.lists(st.text(min_size=1), min_size=1, max_size=50, unique=True), st.integers(1, 60))
def test_every_image_is_in_one_block(names: list[str], size: int) -> None:
    def blocks(**more: object) -> list[Any]:
        return list(BlockStore(Path("nowhere"), Listing(Path("/a"), tuple(names)), size, {**ORIGIN, **more}))

    found = blocks()
    assert [name for block in found for name in block.names] == names
    assert [block.number for block in found] == list(range(len(found)))
    assert all(len(block.names) == size for block in found[:-1])
    assert blocks() == found
    assert len({block.file for block in found}) == len(found)
    assert not {block.file for block in found} & {block.file for block in blocks(**{"--model": "other"})}


def rows(count: int, *broken: int) -> dict[str, list[Any]]:
    whole: list[Any] = [0.5 + index for index in range(count)]
    decided: list[Any] = [index > 1 for index in range(count)]
    for index in broken:
        whole[index] = decided[index] = None
    errors = ["no image" if index in broken else "" for index in range(count)]
    return {"score": whole, "p_value": [None] * count, "is_anomalous": decided, "error": errors}


def make_store(
    folder: Path, names: tuple[str, ...] = ("a", "b", "c", "d", "e"), size: int = 3, **more: Any
) -> BlockStore:
    return BlockStore(folder, Listing(Path("/images"), names), size, {**ORIGIN, **more})


@pytest.fixture
def parquet() -> Any:
    return pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, of the extra ray")


def test_what_was_committed_is_found_again(tmp_path: Path, parquet: Any) -> None:
    store = make_store(tmp_path / "out", ("a", "b\udcff", "c", "d", "e"))
    store.open()
    first, second = store
    assert store.committed(pytest.fail) == {}
    (tmp_path / "out" / "blocks" / f".{first.file}.x1").write_bytes(b"half of a file that a kill has left")
    done = [
        commit_block(store.folder / "blocks", first, rows(3, 1)),
        commit_block(store.folder / "blocks", second, rows(2)),
    ]
    assert done[0] == Committed(0, 3, 1, "no image", 1, 2.5, "c")
    assert done[1] == Committed(1, 2, 0, "", 0, 1.5, "e")
    again = make_store(tmp_path / "out", ("a", "b\udcff", "c", "d", "e"))
    again.open()
    assert again.committed(pytest.fail) == {0: done[0], 1: done[1]}
    again.tidy()
    assert sorted(path.name for path in (tmp_path / "out" / "blocks").iterdir()) == [first.file, second.file]
    table = parquet.read_table(tmp_path / "out" / "blocks").to_pylist()
    assert [row["path"] for row in table] == ["a", "b\\udcff", "c", "d", "e"]
    assert [row["score"] for row in table] == [0.5, None, 2.5, 0.5, 1.5]
    assert [row["error"] for row in table] == [None, "no image", None, None, None]
    assert [row["is_anomalous"] for row in table] == [False, None, True, False, False]
    assert [row["p_value"] for row in table] == [None] * 5


def test_a_block_without_a_score(tmp_path: Path, parquet: Any) -> None:
    store = make_store(tmp_path / "out")
    store.open()
    assert commit_block(store.folder / "blocks", next(iter(store)), rows(3, 0, 1, 2))[2:] == (
        3,
        "no image",
        None,
        None,
        "",
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--model": "n"}, "--model: it was m and is n"),
        ({"--false-alarm-rate": None}, "--false-alarm-rate: it was 0.1 and is None"),
        ({"size": 4}, "--block-size: it was 3 and is 4"),
        ({"names": ("a",)}, "number of images in --input: it was 5 and is 1"),
        ({"names": ("a", "b", "c", "d", "f")}, "--input: it was"),
    ],
)
def test_what_was_begun_otherwise_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    make_store(tmp_path / "out").open()
    before = (tmp_path / "out" / "score.json").read_bytes()
    with pytest.raises(DataError) as caught:
        make_store(tmp_path / "out", **change).open()
    assert f"{tmp_path}/out was begun with another {said}" in str(caught.value)
    assert "choose a new folder" in str(caught.value)
    assert (tmp_path / "out" / "score.json").read_bytes() == before


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path / "out").open()
    monkeypatch.setattr("semflow.app.scale.blocks.__version__", "9.9")
    with pytest.raises(DataError, match=r"another version of semflow: it was \S+ and is 9.9"):
        make_store(tmp_path / "out").open()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.txt").touch()
    with pytest.raises(DataError, match="not empty"):
        make_store(tmp_path).open()
    (tmp_path / "out").mkdir()
    for content in ("{", "[]", "\udcff"):
        (tmp_path / "out" / "score.json").write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(DataError, match=r"score.json: expected .*; choose a new folder"):
            make_store(tmp_path / "out").open()
    (tmp_path / "out" / "score.json").write_text("{}")
    with pytest.raises(DataError, match="another format"):
        make_store(tmp_path / "out").open()


def test_a_broken_file_is_told_and_done_again(tmp_path: Path, parquet: Any) -> None:
    store = make_store(tmp_path / "out")
    store.open()
    first, second = store
    for block in store:
        commit_block(store.folder / "blocks", block, rows(len(block.names)))
    path, told = store.folder / "blocks" / first.file, list[str]()
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[: len(whole) // 2], (store.folder / "blocks" / second.file).read_bytes()):
        path.write_bytes(content)
        assert list(store.committed(told.append)) == [1]
        assert told[-1].startswith(f"{path}: broken, its block is done again (")
    assert len(told) == 4


def test_a_file_that_is_no_block_is_refused(tmp_path: Path, parquet: Any) -> None:
    store = make_store(tmp_path / "out")
    store.open()
    commit_block(store.folder / "blocks", next(iter(make_store(tmp_path / "out", **{"--model": "n"}))), rows(3))
    with pytest.raises(DataError, match=r"holds 0000000-\w+.parquet, which is none of its blocks; move it away"):
        store.committed(pytest.fail)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses_leaves_nothing(
    tmp_path: Path, parquet: Any, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store = make_store(tmp_path / "out")
    store.open()

    def refuse(table: object, file: Path) -> None:
        file.write_bytes(b"PAR1")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(parquet, "write_table", refuse)
    with pytest.raises(DataError, match=rf"parquet must be writable, but got {os.strerror(code)}; "):
        commit_block(store.folder / "blocks", next(iter(store)), rows(3))
    assert list((store.folder / "blocks").iterdir()) == []
    assert store.committed(pytest.fail) == {}


def test_the_manifest_is_what_a_reader_needs() -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_store(Path(folder) / "out").open()
        found = json.loads((Path(folder) / "out" / "score.json").read_text())
    assert found["images"] == 5
    assert found["--block-size"] == 3
    assert {"format", "semflow", "input", "--model", "--false-alarm-rate"} <= found.keys()
