"""A disk that is full, an export that was killed, and what a file says of the machine that it was made on."""

import sys
from pathlib import Path

import pytest

import semflow
from helpers.export_cases import FORMATS, own_detector
from semflow.app.export import save
from semflow.app.export.runtime import SUFFIXES
from semflow.errors import DataError

resource = pytest.importorskip("resource", reason="sizes of files are limited by POSIX systems alone")


@pytest.fixture
def full_disk():
    """No file may grow beyond 3,000 bytes, which takes hold within the writers of other libraries too."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.mark.skipif(sys.platform == "win32", reason="sizes of files are limited by POSIX systems alone")
@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_is_one_line_and_no_file(name, tmp_path, full_disk) -> None:
    path = tmp_path / f"own{SUFFIXES[name]}"
    with pytest.raises(DataError, match="must be writable") as caught:
        save(own_detector(), path, check=False)
    assert str(caught.value).startswith(f"{path} must be writable, but got ")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_has_left_goes_with_the_next(tmp_path) -> None:
    left, others = tmp_path / ".own[1].pt2.abcdefgh.partial", tmp_path / ".own[1].pt2.mine"
    for folder in (left, others):
        folder.mkdir()
        (folder / "own[1].pt2").write_bytes(b"half")
    save(own_detector(), tmp_path / "own[1].pt2", check=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [others.name, "own[1].pt2"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_does_not_tell_where_it_was_made(name, files) -> None:
    """Exporters note of every step in which file its code lies, and these lie in somebody's folder."""
    content = b"".join(file.read_bytes() for file in files[name].parent.glob(f"own{SUFFIXES[name]}"))
    for folder in (Path(semflow.__file__).parent, Path(__file__).parent, files[name].parent):
        assert str(folder).encode() not in content
