"""Folders that appear when they are complete, and that a killed process can continue."""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from semflow.errors import DataError

from .atomic import refuse_occupied, writing
from .places import begin_moving, hidden_stage, put_folder, real_path, undo_moving

FOLDER, JOURNAL = "folder", "journal.jsonl"


class Unfinished:
    """Unfinished folder and its complete entries.

    The journal in the hidden folder `stage` lists them. Its lock lasts while this process is alive. Entries of another
    origin are deleted.
    """

    def __init__(self, stage: Path, origin: str, journal: IO[str]) -> None:
        self.folder = stage / FOLDER
        self.done: dict[str, dict[str, Any]] = {}
        self._files: dict[str, list[str]] = {}
        self._journal = journal
        self._read(origin)

    def add(self, key: str, entry: Mapping[str, Any], files: Sequence[str]) -> None:
        """Record an entry after its files, given relative to `folder`, have been written."""
        with writing(self.folder):
            self._write({"key": key, "entry": dict(entry), "files": list(files)})
        self.done[key], self._files[key] = dict(entry), list(files)

    def drop(self, key: str) -> None:
        """Forget an entry; `tidy` deletes its files unless they are written again."""
        del self.done[key], self._files[key]

    def tidy(self, also: Sequence[str]) -> None:
        """Delete all files that belong neither to an entry nor to `also`."""
        kept = {*also, *(name for names in self._files.values() for name in names)}
        for path in sorted(self.folder.rglob("*"), reverse=True):  # files before their folder
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(self.folder).as_posix() not in kept:
                path.unlink()

    def _read(self, origin: str) -> None:
        self._journal.seek(0)
        lines, end = [], 0
        for text in self._journal.read().splitlines(keepends=True):
            if (line := _parsed(text)) is None:
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
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()


def _parsed(text: str) -> dict[str, Any] | None:
    """Parse a line of the journal; return None if it is incomplete."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    known = isinstance(line, dict) and line.keys() in ({"origin"}, {"key", "entry", "files"})
    return line if known and text.endswith("\n") else None


@contextmanager
def resumable_folder(path: str | Path, origin: str) -> Iterator[Unfinished]:
    """Create a folder that appears at `path` when the block succeeds.

    The block works in a hidden folder beside `path`, or in it if it exists, as a mount point does. The hidden folder
    remains after a kill, an interrupt or an error if it has complete entries: the next call with the same `path` and
    `origin` finds them. Two processes cannot create the same folder at the same time.
    """
    path = real_path(path)
    refuse_occupied(path)
    stage = hidden_stage(path)
    with writing(path):
        journal = _locked(stage, path)
    with journal:
        work = None
        try:
            with writing(path):
                undo_moving(stage, stage / FOLDER, path)
                work = Unfinished(stage, origin, journal)
            yield work
            with writing(path, "repeat the command when it is"):
                begin_moving(stage, work.folder)
                put_folder(work.folder, path)
        except BaseException:
            if work is None or not work.done:
                shutil.rmtree(stage, ignore_errors=True)
            raise
        shutil.rmtree(stage, ignore_errors=True)


def _locked(stage: Path, path: Path) -> IO[str]:
    """Open the journal and lock it for the life of this process."""
    while True:
        stage.mkdir(parents=True, exist_ok=True)
        file = (stage / JOURNAL).open("a+", encoding="utf-8", errors="replace")
        try:
            if sys.platform != "win32":  # Windows lacks such locks
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise DataError(
                f"{path} must not be in use, but got another process that creates it; wait or choose another location"
            ) from None
        # The previous owner of the lock may have finished and deleted the file since it was opened.
        if (stage / JOURNAL).exists() and os.path.samestat(os.fstat(file.fileno()), (stage / JOURNAL).stat()):
            return file
        file.close()
