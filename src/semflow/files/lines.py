"""A file of JSON lines that grows: every line is on the disk when `append` returns, and a kill loses none of them."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from semflow.errors import DataError

from .atomic import writing


class JSONLines:
    """Lines of a file that this process has locked; see `json_lines`."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self._file = path, file

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the lines that are JSON objects, from the first one."""
        self._file.seek(0)
        for text in self._file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line

    def append(self, line: Mapping[str, Any]) -> str:
        """Write a line, wait until it is on the disk, and return its text."""
        text = json.dumps(line)
        with writing(self.path, "run the same command again to continue"):
            self._file.seek(0, os.SEEK_END)
            self._file.write(f"{text}\n".encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        return text

    def repair(self) -> None:
        """Cut off a last line that a killed process has not finished."""
        size, block = self._file.seek(0, os.SEEK_END), 2**16
        end = size
        while end > 0:
            start = max(0, end - block)
            self._file.seek(start)
            if (found := self._file.read(end - start).rfind(b"\n")) >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            self._file.truncate(end)


@contextmanager
def json_lines(path: Path) -> Iterator[JSONLines]:
    """Open or create a file of JSON lines for one process at a time.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, json_lines(Path(folder, "a.jsonl")) as lines:
        ...     text = lines.append({"image": "a.png"})
        ...     text, list(lines.read())
        ('{"image": "a.png"}', [{'image': 'a.png'}])
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    with file:
        if sys.platform != "win32":  # Windows lacks such locks
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DataError(
                    f"{path} must not be in use, but got another process that writes it; stop it or choose another "
                    "location"
                ) from None
        lines = JSONLines(path, file)
        lines.repair()
        yield lines
