"""Full disks, killed exports, and paths of this machine in exported files."""

import sys
from pathlib import Path

import pytest

import semflow
from helpers.export_cases import FORMATS, own_detector
from semflow.app.export import save
from semflow.app.export.runtime import SUFFIXES
from semflow.errors import DataError

resource = pytest.importorskip("resource", reason="only POSIX systems limit file sizes")


@pytest.fixture
def full_disk():
    """Limit files to 3,000 bytes, also in the writers of other libraries."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.mark.skipif(sys.platform == "win32", reason="only POSIX systems limit file sizes")
@pytest.mark.parametrize("name", FORMATS)
def test_full_disk_is_one_error_and_leaves_no_file(name, tmp_path, full_disk) -> None:
    path = tmp_path / f"own{SUFFIXES[name]}"
    with pytest.raises(DataError, match="must be writable") as caught:
        save(own_detector(), path, check=False)
    assert str(caught.value).startswith(f"{path} must be writable, but got ")
    assert not list(tmp_path.iterdir())


def test_save_removes_leftovers_of_a_killed_export(tmp_path) -> None:
    left, others = tmp_path / ".own[1].pt2.abcdefgh.partial", tmp_path / ".own[1].pt2.mine"
    for folder in (left, others):
        folder.mkdir()
        (folder / "own[1].pt2").write_bytes(b"half")
    save(own_detector(), tmp_path / "own[1].pt2", check=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [others.name, "own[1].pt2"]


@pytest.mark.parametrize("name", FORMATS)
def test_file_contains_no_paths_of_this_machine(name, files) -> None:
    content = b"".join(file.read_bytes() for file in files[name].parent.glob(f"own{SUFFIXES[name]}"))
    for folder in (Path(semflow.__file__).parent, Path(__file__).parent, files[name].parent):
        assert str(folder).encode() not in content
