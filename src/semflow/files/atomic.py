"""Atomic writes of files and folders: a killed process leaves the old content or the new one, never a part."""

import errno
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from semflow.errors import DataError, SemflowError

FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows lacks EDQUOT


def replace_file(path: Path, write: Callable[[Path], object], durable: bool = False) -> None:
    """Write a temporary file beside `path` with `write`, then rename it to `path`.

    `durable` flushes the file and its folder to the disk, so that the guarantee holds after a power failure too.
    """
    temporary = _partial(path)
    try:
        write(temporary)
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable and os.name == "posix":
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | Path, content: bytes | str) -> Path:
    """Write bytes or text to a file atomically and return its path.

    Missing parent folders are created. Surrogates, which stand for undecodable bytes in file names, are written as
    backslash escapes.
    """
    path = Path(path)
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write_bytes(data))
    return path


@contextmanager
def writing(
    path: Path, advice: str = "choose another location", error: type[SemflowError] = DataError
) -> Iterator[None]:
    """Turn an OSError of the block, which need not name a file, into an error that names the output."""
    try:
        yield
    except OSError as caught:
        free = "free some space, or " if caught.errno in FULL else ""
        reason = caught.strerror or str(caught)
        raise error(f"{path} must be writable, but got {reason}; {free}{advice}") from caught


def remove_partial(folder: Path, *names: str) -> None:
    """Remove the temporary files of killed processes: those of the outputs `names`, or by default of all outputs."""
    for name in map(glob.escape, names) if names else ("*",):
        for path in folder.glob(f".{name}.????????.partial"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def staging(path: Path) -> Iterator[Path]:
    """Create a temporary folder beside `path`, on the same file system, and remove it after the block."""
    folder = _partial(path)
    with writing(path):
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def staged_folder(path: str | Path, replaces: str | None = None) -> Iterator[Path]:
    """Create a folder atomically: it appears at `path` when the block succeeds, and not at all if it raises.

    The block writes into the folder that is yielded, a temporary one beside `path`. An existing folder must be empty or
    contain the file `replaces`, which marks folders created in the same way; then all its content is replaced.
    """
    path = Path(path).absolute()
    refuse_occupied(path, replaces)
    with staging(path) as folder:
        staged = folder / path.name
        staged.mkdir()
        yield staged
        if replaces is not None and (path / replaces).is_file():
            shutil.rmtree(path)
        elif path.is_dir():
            path.rmdir()  # Windows does not rename onto an empty folder
        staged.replace(path)


def refuse_occupied(path: Path, replaces: str | None = None) -> None:
    """Raise DataError unless `path` can be created, is an empty folder, or contains the file `replaces`."""
    if path.is_dir() and (not any(path.iterdir()) or (replaces is not None and (path / replaces).is_file())):
        return
    if path.exists():
        found = "a folder that is not empty" if path.is_dir() else "a file"
        raise DataError(f"{path} must be a new or empty folder, but got {found}; choose another location or empty it")
    refuse_unwritable(path)


def refuse_unwritable(path: Path) -> None:
    """Raise DataError if nothing can be created at `path`, to fail before the work instead of after it."""
    for folder in path.absolute().parents:
        if folder.is_dir():
            if not os.access(folder, os.W_OK | os.X_OK):
                raise DataError(
                    f"{folder} must be writable, but got no permission; choose a location other than {path}"
                )
            return
        if folder.exists():
            raise DataError(f"{folder} must be a folder, but got a file; choose a location other than {path}")


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
