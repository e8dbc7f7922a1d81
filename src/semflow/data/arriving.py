"""Image files that other programs are still writing: when each one is whole."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from semflow.errors import DataError

T = TypeVar("T")

QUIET = 0.3
"""Seconds without a change after which a file counts as written, where the system does not say who has it open."""
OPEN = 2.0
"""Seconds without a change after which a file that decodes counts as written although it is open."""
PATIENCE, LONGEST = 5.0, 60.0
"""Seconds without a change after which a file that does not decode is given up: closed, and still open."""


class Version(NamedTuple):
    """Size and time of the last change of a file: another version is another file.

    Example:
        >>> Version.of(Path("no/such/file")) is None
        True
    """

    bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> "Version | None":
        """Return the version of a file, or None if the file does not exist."""
        try:
            found = path.stat()
        except OSError:
            return None
        return cls(found.st_size, found.st_mtime_ns)


@dataclass
class _Waiting:
    version: Version | None = None
    since: float = 0.0
    again: float = 0.0


class Arrived(NamedTuple, Generic[T]):
    """A file that is whole, with what was read from it, or the error of one that stayed unreadable."""

    path: Path
    version: Version
    content: T | str


class Arrivals(Generic[T]):
    """Files that are read when they are whole, in the order of arrival; one that is not keeps no other waiting.

    A file is whole if nobody has it open for writing, it decodes, and it did not change meanwhile. If it does not
    decode and does not change for `PATIENCE` seconds, its error is returned.

    Args:
        read: reads a file; raises DataError if it does not decode.

    Example:
        >>> arrivals = Arrivals(Path.read_bytes)
        >>> arrivals.note(Path("no/such/file"))
        >>> list(arrivals.whole()), len(arrivals)
        ([], 0)
    """

    def __init__(self, read: Callable[[Path], T]) -> None:
        self._read = read
        self._waiting: dict[Path, _Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def note(self, path: Path) -> None:
        """Add a file that is new or has changed."""
        self._waiting.setdefault(path, _Waiting()).again = 0.0

    def whole(self) -> Iterator[Arrived[T]]:
        """Yield the files that are whole by now."""
        for path, waiting in list(self._waiting.items()):
            if time.monotonic() < waiting.again:
                continue
            arrived = self._look(path, waiting)
            if arrived is not None or waiting.version is None:
                self._waiting.pop(path, None)
            if arrived is not None:
                yield arrived

    def _look(self, path: Path, waiting: _Waiting) -> Arrived[T] | None:
        version, now = Version.of(path), time.monotonic()
        if version != waiting.version:
            waiting.version, waiting.since = version, now
        if version is None:
            return None
        unchanged = now - waiting.since
        waiting.again = now + min(unchanged / 4, 0.5)
        is_open = is_being_written(path)
        if unchanged < (QUIET if is_open is None else OPEN if is_open else 0.0):
            return None
        try:
            content: T | str = self._read(path)
        except DataError as error:
            if unchanged < (LONGEST if is_open else PATIENCE):
                return None
            content = str(error)
        return Arrived(path, version, content) if Version.of(path) == version else None


def is_being_written(path: Path) -> bool | None:
    """Return whether another program has a file open for writing; None if the system does not tell.

    Linux tells by refusing a lease, on its own disks and to the owner of the file.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     is_being_written(Path(file.name)) in (True, None)
        True
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return None
    import fcntl

    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # comes if somebody opens the file now, and would end us
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(file)
        signal.signal(signal.SIGIO, before)
    return False
