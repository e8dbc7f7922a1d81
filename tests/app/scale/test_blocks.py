"""Blocks of a listing and their files."""

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
from semflow.app.scale.blocks import commit_block, read_scores
from semflow.errors import DataError

ORIGIN = {"--model": "m", "--false-alarm-rate": 0.1}


@given(st.lists(st.text(min_size=1), min_size=1, max_size=50, unique=True), st.integers(1, 60))
def test_blocks_partition_the_images(names: list[str], size: int) -> None:
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
    scores: list[Any] = [0.5 + index for index in range(count)]
    decided: list[Any] = [index > 1 for index in range(count)]
    for index in broken:
        scores[index] = decided[index] = None
    errors = ["no image" if index in broken else "" for index in range(count)]
    return {"score": scores, "p_value": [None] * count, "is_anomalous": decided, "error": errors}


def make_store(
    folder: Path, names: tuple[str, ...] = ("a", "b", "c", "d", "e"), size: int = 3, **more: Any
) -> BlockStore:
    return BlockStore(folder, Listing(Path("/images"), names), size, {**ORIGIN, **more})


@pytest.fixture
def parquet() -> Any:
    return pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, of the extra ray")


def test_committed_blocks_are_found_again(tmp_path: Path, parquet: Any) -> None:
    store = make_store(tmp_path / "out", ("a", "b\udcff", "c", "d", "e"))
    store.open()
    first, second = store
    assert store.committed(pytest.fail) == {}
    (tmp_path / "out" / "blocks" / f".{first.file}.01234567.partial").write_bytes(b"half")
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


def test_scores_are_read_in_the_order_of_the_images(tmp_path: Path, parquet: Any) -> None:
    del parquet
    store = make_store(tmp_path / "out")
    store.open()
    for block, count in zip(store, (3, 2), strict=True):
        given = {**rows(count, 1), "p_value": [0.5 - block.number / 4, None, 1.0][:count]}
        commit_block(store.folder / "blocks", block, given)
    assert read_scores(store) == ([0.5, 2.5, 0.5], [0.5, 1.0, 0.25], ["a", "c", "d"])


def test_commit_block_without_scores(tmp_path: Path, parquet: Any) -> None:
    store = make_store(tmp_path / "out")
    store.open()
    assert commit_block(store.folder / "blocks", next(iter(store)), rows(3, 0, 1, 2))[2:] == (
        3,
        "no image",
        None,
        None,
        "",
        0,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--model": "n"}, "--model must be m as in {folder}, but got n"),
        ({"--false-alarm-rate": None}, "--false-alarm-rate must be 0.1 as in {folder}, but got None"),
        ({"size": 4}, "--block-size must be 3 as in {folder}, but got 4"),
        ({"names": ("a",)}, "number of images in --input must be 5 as in {folder}, but got 1"),
        ({"names": ("a", "b", "c", "d", "f")}, "--input must be "),
    ],
)
def test_open_rejects_other_options(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    make_store(tmp_path / "out").open()
    before = (tmp_path / "out" / "score.json").read_bytes()
    with pytest.raises(DataError) as caught:
        make_store(tmp_path / "out", **change).open()
    assert str(caught.value).startswith(message.format(folder=tmp_path / "out"))
    assert "choose a new folder" in str(caught.value)
    assert (tmp_path / "out" / "score.json").read_bytes() == before


def test_open_rejects_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path / "out").open()
    monkeypatch.setattr("semflow.app.scale.blocks.__version__", "9.9")
    with pytest.raises(DataError, match=r"^version of semflow must be \S+ as in .*, but got 9.9"):
        make_store(tmp_path / "out").open()


def test_open_rejects_folders_of_other_content(tmp_path: Path) -> None:
    (tmp_path / "other.txt").touch()
    with pytest.raises(DataError, match="not empty"):
        make_store(tmp_path).open()
    (tmp_path / "out").mkdir()
    for content in ("{", "[]", "\udcff"):
        (tmp_path / "out" / "score.json").write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(DataError, match=r"score.json must be .*; choose a new folder"):
            make_store(tmp_path / "out").open()
    (tmp_path / "out" / "score.json").write_text("{}")
    with pytest.raises(DataError, match=r"^format must be None"):
        make_store(tmp_path / "out").open()


def test_broken_block_is_reported_and_missing(tmp_path: Path, parquet: Any) -> None:
    store = make_store(tmp_path / "out")
    store.open()
    first, second = store
    for block in store:
        commit_block(store.folder / "blocks", block, rows(len(block.names)))
    path, notices = store.folder / "blocks" / first.file, list[str]()
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[: len(whole) // 2], (store.folder / "blocks" / second.file).read_bytes()):
        path.write_bytes(content)
        assert list(store.committed(notices.append)) == [1]
        assert notices[-1].startswith(f"{path} is broken, its block is computed again: ")
    assert len(notices) == 4


def test_committed_rejects_foreign_files(tmp_path: Path, parquet: Any) -> None:
    store = make_store(tmp_path / "out")
    store.open()
    commit_block(store.folder / "blocks", next(iter(make_store(tmp_path / "out", **{"--model": "n"}))), rows(3))
    with pytest.raises(DataError, match=r"must contain only blocks, but got 0000000-\w+.parquet; move it elsewhere"):
        store.committed(pytest.fail)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_failed_commit_leaves_no_file(tmp_path: Path, parquet: Any, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
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


def test_manifest_contents() -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_store(Path(folder) / "out").open()
        found = json.loads((Path(folder) / "out" / "score.json").read_text())
    assert found["images"] == 5
    assert found["--block-size"] == 3
    assert {"format", "semflow", "input", "--model", "--false-alarm-rate"} <= found.keys()
