"""Outputs at mount points, links, devices and in folders that exist: filled, never replaced, and never lost."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from semflow.errors import DataError
from semflow.files import refuse_occupied, refuse_unwritable, staged_folder, staging, write_atomic
from semflow.files.resumable import resumable_folder

BUSY = OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def make(writer: str, path: Path, *, marked: bool = False) -> None:
    """Write a folder with a file in a subfolder and a JSON file."""
    if writer == "staging":
        with staging(path) as folder:
            (folder / "mark.json").write_text("new")
    elif writer == "resumable":
        with resumable_folder(path, "origin") as work:
            (work.folder / "maps").mkdir(exist_ok=True)
            (work.folder / "maps" / "a.npy").write_text("new")
            (work.folder / "mark.json").write_text("new")
            work.add("a", {}, ["maps/a.npy", "mark.json"])
    else:
        with staged_folder(path, replaces="mark.json" if marked else None) as folder:
            (folder / "maps").mkdir()
            (folder / "maps" / "a.npy").write_text("new")
            (folder / "mark.json").write_text("new")


MADE = ["maps", "maps/a.npy", "mark.json"]


@pytest.mark.parametrize("writer", ["staged", "resumable"])
@pytest.mark.parametrize("extra", [[], ["lost+found"], [".DS_Store", "@eaDir"]])
def test_empty_folder_is_filled_and_not_replaced(writer: str, extra: list[str], tmp_path: Path) -> None:
    """A mount point cannot be replaced; owner, permissions and the system's own entries stay."""
    output = tmp_path / "out"
    output.mkdir()
    for name in extra:
        (output / name).mkdir()
    before = output.stat().st_ino
    make(writer, output)
    assert output.stat().st_ino == before
    assert names(output) == sorted([*extra, *MADE])
    assert names(tmp_path) == sorted(["out", *(f"out/{name}" for name in (*extra, *MADE))])


@pytest.mark.parametrize("writer", ["staged", "resumable"])
@pytest.mark.parametrize("exists", [True, False])
def test_link_is_followed_and_stays(writer: str, exists: bool, tmp_path: Path) -> None:
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    real.parent.mkdir()
    if exists:
        real.mkdir()
    link.symlink_to(real)
    make(writer, link)
    assert link.is_symlink()
    assert names(real) == MADE
    assert names(tmp_path / "disk") == ["real", *(f"real/{name}" for name in MADE)]


def test_marked_folder_is_emptied_and_filled(tmp_path: Path) -> None:
    output = tmp_path / "out"
    for name in ("lost+found", "old"):
        (output / name).mkdir(parents=True)
    (output / "mark.json").write_text("old")
    before = output.stat().st_ino
    make("staged", output, marked=True)
    assert names(output) == ["lost+found", *MADE]
    assert (output / "mark.json").read_text() == "new"
    assert output.stat().st_ino == before


@pytest.mark.parametrize("writer", ["staged", "resumable", "staging"])
@pytest.mark.parametrize("exists", [True, False])
def test_finished_work_is_kept_if_it_cannot_be_moved(
    writer: str, exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    if exists and writer != "staging":
        output.mkdir()
    calls: list[object] = []

    def refuse(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        if len(calls) > 1 or not output.is_dir():  # after one of two entries
            raise BUSY
        Path(str(arguments[0])).rename(str(arguments[1]))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "move", refuse)
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(DataError, match="out must be writable, but got Device or resource busy") as caught:
            make(writer, output)
    (kept,) = [path for path in tmp_path.rglob("mark.json") if path.read_text() == "new"]
    if writer == "resumable":
        make(writer, output)
        assert names(output) == MADE
    else:
        assert str(next(p for p in kept.parents if p.name.endswith(".partial"))) in str(caught.value)


def test_folder_killed_while_it_was_filled_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    output.mkdir()
    move = shutil.move

    def killed(source: Path, target: Path) -> None:
        move(source, target)
        raise SystemExit

    with monkeypatch.context() as patch:  # as a kill, which leaves no time to move anything back
        patch.setattr(shutil, "move", killed)
        patch.setattr("semflow.files.places.reversed", lambda _: (), raising=False)
        with pytest.raises(SystemExit):
            make("resumable", output)
    assert (output / "maps" / "a.npy").is_file()
    assert not (output / "mark.json").exists()
    refuse_occupied(output)  # its entries are not somebody else's
    make("resumable", output)
    assert names(output) == MADE


def test_file_that_cannot_be_replaced_gets_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "metrics.json"
    target.write_text("a longer old content")
    before = target.stat().st_ino
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, path: fail() if path == target else replace(self, path))

    def fail() -> None:
        raise BUSY

    write_atomic(target, "new")
    assert (target.read_text(), target.stat().st_ino) == ("new", before)
    assert names(tmp_path) == ["metrics.json"]


def test_finished_file_is_kept_if_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").mkdir()  # made by another program after the check
    with pytest.raises(
        DataError, match=r"metrics.json must be writable, but got .*partial keeps the content"
    ) as caught:
        write_atomic(tmp_path / "metrics.json", "new")
    (kept,) = tmp_path.glob(".metrics.json.*.partial")
    assert kept.read_text() == "new"
    assert str(kept) in str(caught.value)


@pytest.mark.parametrize("exists", [True, False])
def test_file_behind_a_link_is_written_and_the_link_stays(exists: bool, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    if exists:
        (tmp_path / "disk" / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "disk" / "real.json")
    refuse_unwritable(tmp_path / "link.json")
    write_atomic(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink()
    assert names(tmp_path) == ["disk", "disk/real.json", "link.json"]
    assert (tmp_path / "disk" / "real.json").read_text() == "new"


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
def test_devices_and_pipes_are_written_and_not_replaced(tmp_path: Path) -> None:
    code = "from semflow.files import *; refuse_unwritable(Path('/dev/stdout')); write_atomic('/dev/stdout', 'new')"
    command = [sys.executable, "-c", f"from pathlib import Path; {code}; write_atomic('/dev/null', 'x')"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "new"
    assert not Path("/dev/null").is_file()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(pipe, "new")
    assert os.read(reader, 100) == b"new"
    os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
def test_file_in_a_folder_that_is_read_only_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file that is mounted into a container without other writable places."""
    allowed, target = os.access, write_atomic(tmp_path / "metrics.json", "old")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and allowed(path, mode))
    refuse_unwritable(target)
    before = target.stat().st_ino
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, x: (1 / (self.parent != tmp_path), write(self, x))[1])
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(BUSY))
    write_atomic(target, "new")
    assert (target.read_text(), target.stat().st_ino) == ("new", before)
    with pytest.raises(DataError, match=r"must be writable, but got no permission; choose a location other than"):
        refuse_unwritable(tmp_path / "other.json")


def test_file_without_permission_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write_atomic(tmp_path / "metrics.json", "old")
    monkeypatch.setattr(os, "access", lambda path, mode: path != target)
    with pytest.raises(DataError, match=r"metrics.json must be writable, but got no permission"):
        refuse_unwritable(target)


MOUNT = """
mkdir volume file && touch file/metrics.json
mount -t tmpfs volume volume && mkdir volume/lost+found
touch content && mount --bind content file/metrics.json
"$PYTHON" - <<'END'
import json
from pathlib import Path
from semflow.files import staged_folder, write_atomic
from semflow.files.resumable import resumable_folder
with resumable_folder("volume", "origin") as work:
    (work.folder / "a.txt").touch()
    work.add("a", {}, ["a.txt"])
first = sorted(p.name for p in Path("volume").iterdir())
Path("volume/a.txt").unlink()
with staged_folder("volume") as folder:
    (folder / "b.txt").touch()
write_atomic("file/metrics.json", "new")
print(json.dumps([first, sorted(p.name for p in Path("volume").iterdir()), Path("content").read_text()]))
END
"""


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
    reason="may not mount",
)
def test_mounted_folder_and_file_are_filled(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["unshare", "-m", "bash", "-ec", MOUNT]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["a.txt", "lost+found"], ["b.txt", "lost+found"], "new"]
