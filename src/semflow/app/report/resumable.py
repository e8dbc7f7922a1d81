"""A folder that is whole when it is seen, and that a killed process can go on with."""

__all__ = ["Unfinished", "resumable_folder"]

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from semflow.errors import DataError

from .files import naming, refuse_occupied

FOLDER, JOURNAL = "folder", "journal.jsonl"


class Unfinished:
    """A folder in the making: where to write, and what is done.

    Args:
        stage: the hidden folder that holds the folder and its journal.
        origin: what the entries are made of; those of another origin are thrown away.
        journal: its open file; the lock on it says that this process is alive.
    """

    def __init__(self, stage: Path, origin: str, journal: IO[str]) -> None:
        self.folder, self.keep = stage / FOLDER, False
        self.done: dict[str, dict[str, Any]] = {}
        self._files: dict[str, list[str]] = {}
        self._journal = journal
        self._take(origin)

    def add(self, key: str, entry: Mapping[str, Any], files: Sequence[str]) -> None:
        """Note that an entry is done, after its files (relative to `folder`) have been written whole."""
        with naming(self.folder):
            self._write({"key": key, "entry": dict(entry), "files": list(files)})
        self.done[key], self._files[key] = dict(entry), list(files)

    def drop(self, key: str) -> None:
        """Forget an entry; its files go when the folder is finished, unless they are made again."""
        del self.done[key], self._files[key]

    def tidy(self, also: Sequence[str]) -> None:
        """Remove what belongs neither to an entry nor to `also`: files of dropped entries, and halves of a kill."""
        kept = {*also, *(name for names in self._files.values() for name in names)}
        for path in sorted(self.folder.rglob("*"), reverse=True):  # what is in a folder before the folder
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(self.folder).as_posix() not in kept:
                path.unlink()

    def _take(self, origin: str) -> None:
        """Read what a killed process has left, as far as it is of the same origin and whole."""
        self._journal.seek(0)
        lines, end = [], 0
        for text in self._journal.read().splitlines(keepends=True):
            line = _parsed(text)
            if line is None:  # cut off while it was written
                break
            lines.append(line)
            end += len(text.encode())
        if not lines or lines[0] != {"origin": origin}:
            shutil.rmtree(self.folder, ignore_errors=True)
            lines, end = [], 0
        self._journal.truncate(end)
        self.folder.mkdir(exist_ok=True)
        if not lines:
            self._write({"origin": origin})
        for line in lines[1:]:
            if all((self.folder / name).is_file() for name in line["files"]):
                self.done[line["key"]], self._files[line["key"]] = line["entry"], line["files"]

    def _write(self, line: Mapping[str, Any]) -> None:
        self._journal.seek(0, os.SEEK_END)
        self._journal.write(json.dumps(line) + "\n")  # names of files may hold any bytes; JSON escapes them
        self._journal.flush()


def _parsed(text: str) -> dict[str, Any] | None:
    """A line of the journal, or None if it is not whole."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    known = isinstance(line, dict) and line.keys() in ({"origin"}, {"key", "entry", "files"})
    return line if known and text.endswith("\n") else None


@contextmanager
def resumable_folder(path: str | Path, origin: str) -> Iterator[Unfinished]:
    """A folder that appears under its name when the block ends well.

    It is made in a hidden folder beside `path`, which stays when the process is killed or interrupted: the next one
    with the same `path` and `origin` finds there what is done. An error takes it away. Two processes cannot make the
    same folder at the same time.

    Args:
        path: the folder to make.
        origin: what the folder is made of, such as the fingerprint of a model: entries of another one are not used.

    Raises:
        DataError: `path` is occupied, another process is making it, or the disk refuses.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     with resumable_folder(Path(parent) / "results", "model 1") as work:
    ...         _ = (work.folder / "a.txt").write_text("whole")
    ...         work.add("a", {"score": 1.5}, ["a.txt"])
    ...     sorted(p.relative_to(parent).as_posix() for p in Path(parent).rglob("*"))
    ['results', 'results/a.txt']
    """
    path = Path(path).absolute()
    refuse_occupied(path)
    stage = path.with_name(f".{path.name}.partial")
    with naming(path):
        journal = _locked(stage, path)
    with journal:
        work = None
        try:
            with naming(path):
                work = Unfinished(stage, origin, journal)
            yield work
            with naming(path):
                if path.is_dir():
                    path.rmdir()  # empty, as checked; some systems do not rename onto a folder
                work.folder.replace(path)
        except BaseException as error:
            # An interrupt, or an error with `keep`, leaves what is done.
            if work is None or not work.done or (isinstance(error, Exception) and not work.keep):
                shutil.rmtree(stage, ignore_errors=True)
            raise
        shutil.rmtree(stage, ignore_errors=True)


def _locked(stage: Path, path: Path) -> IO[str]:
    """The journal, open and locked by this process; the system takes the lock back when the process ends."""
    while True:
        stage.mkdir(parents=True, exist_ok=True)
        file = (stage / JOURNAL).open("a+", encoding="utf-8", errors="replace")
        try:
            _lock(file)
        except OSError:
            file.close()
            raise DataError(f"output {path}: another process is making it; wait, or choose another place") from None
        # Whoever held the lock may have finished in between, and have taken the file away.
        if (stage / JOURNAL).exists() and os.path.samestat(os.fstat(file.fileno()), (stage / JOURNAL).stat()):
            return file
        file.close()


def _lock(file: IO[str]) -> None:
    if sys.platform != "win32":  # elsewhere two processes at the same folder are not told apart
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
