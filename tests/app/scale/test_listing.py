"""Images of folders, text files and tables."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.scale_cases import make_images
from semflow.app.cli.predict import image_names
from semflow.app.scale import read_listing
from semflow.data import open_dataset
from semflow.errors import DataError


def table(file: Path, /, **columns: list[object]) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow, of the extra ray")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(columns), file)
    return file


def test_folder_has_the_images_of_predict(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 7)
    dataset = open_dataset(tmp_path / "photos", "predict")
    listing = read_listing(tmp_path / "photos")
    assert list(listing.names) == image_names(dataset)
    assert [str(listing.root / name) for name in listing.names] == list(dataset.paths)
    single = read_listing(tmp_path / "photos" / "0" / "000.png")
    assert (single.names, single.root) == (("000.png",), tmp_path / "photos" / "0")


# Any file name without line breaks.
NAMES = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name.strip() and not name.startswith("\ufeff") and os.path.normpath(name) == name
)


@given(st.lists(NAMES, min_size=1, unique=True), st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans())
def test_text_file_lists_names_in_order(names: list[str], end: str, mark: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.txt"
        path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + "".join(name + end for name in names).encode())
        listing = read_listing(path)
        assert listing.names == tuple(names)
        assert listing.root == Path(folder).absolute()


def test_undecodable_names_keep_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff.png\n")
    listing = read_listing(tmp_path / "list.txt")
    assert os.fsencode(listing.root / listing.names[0]) == os.fsencode(tmp_path) + b"/\xff.png"
    assert len(listing.digest) == 64


def test_table_lists_its_column_path(tmp_path: Path) -> None:
    path = table(tmp_path / "parts.parquet", line=[1, 2, 3], path=["b.png", "/far/a.png", "c.png"])
    listing = read_listing(path)
    assert listing.names == ("b.png", "/far/a.png", "c.png")
    assert listing.root / listing.names[1] == Path("/far/a.png")
    many = tmp_path / "many.parquet"
    many.mkdir()
    table(many / "1.parquet", path=["1.png"])
    table(many / "2.parquet", path=["2.png"])
    assert read_listing(many).names == ("1.png", "2.png")


def test_digest_depends_on_folder_names_and_order(tmp_path: Path) -> None:
    def digest(folder: str, text: str) -> str:
        path = tmp_path / folder / "list.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return read_listing(path).digest

    digests = [digest("a", "1\n2"), digest("b", "1\n2"), digest("a", "2\n1"), digest("a", "12"), digest("a", "1\n2\n3")]
    assert len(set(digests)) == len(digests)
    assert digest("a", "1\n2\n") == digests[0]


def test_invalid_text_files_are_rejected(tmp_path: Path) -> None:
    def error(content: bytes) -> str:
        (tmp_path / "list.txt").write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_listing(tmp_path / "list.txt")
        return str(caught.value)

    assert "but got none" in error(b"\n \n")
    assert "./a.png as entries 1 and 3; remove one" in error(b"a.png\nb.png\n./a.png\n")
    assert "binary data" in error(b"\x89PNG\0\0")
    with pytest.raises(DataError, match="but got none; check the path"):
        read_listing(tmp_path / "absent.txt")
    make_images(tmp_path / "folder.txt", 2)
    assert len(read_listing(tmp_path / "folder.txt").names) == 2


def test_invalid_tables_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must have a column path, but got image, line; rename one"):
        read_listing(table(tmp_path / "a.parquet", image=["1"], line=[2]))
    with pytest.raises(DataError, match="but got None in row 1"):
        read_listing(table(tmp_path / "b.parquet", path=["1", None]))
    with pytest.raises(DataError, match="but got 3 in row 0"):
        read_listing(table(tmp_path / "c.parquet", path=[3]))
    with pytest.raises(DataError, match="x as entries 1 and 2"):
        read_listing(table(tmp_path / "d.parquet", path=["x", "x"]))
    data = table(tmp_path / "e.parquet", path=["x"]).read_bytes()
    for content in (b"", b"PAR1", data[:-10], b"text"):
        (tmp_path / "e.parquet").write_bytes(content)
        with pytest.raises(DataError, match=r"e.parquet must be a Parquet table, but got .*; write it again"):
            read_listing(tmp_path / "e.parquet")
