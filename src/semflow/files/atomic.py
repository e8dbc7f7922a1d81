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

from .places import is_stream, occupants, put_file, put_folder, real_path, temporary_folder

FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows lacks EDQUOT


def replace_file(path: Path, write: Callable[[Path], object], durable: bool = False) -> None:
    """Write a temporary file beside `path` with `write`, then rename it to `path`.

    The target of a link is replaced, not the link. A file that cannot be replaced, such as a mounted one, gets the
    content of the temporary file, which is kept if that fails. `durable` flushes the file and its folder to the disk,
    so that the guarantee holds after a power failure too.
    """
    path = path if is_stream(path) else real_path(path)
    temporary, keep = temporary_folder(path) / _partial(path).name, False
    try:
        write(temporary)
        if durable:
            _sync(temporary)
        try:
            put_file(temporary, path)
        except OSError as error:
            keep = True
            raise OSError(error.errno, f"{error.strerror or error}, and {temporary} keeps the content") from error
        if durable and os.name == "posix":
            _sync(path.parent)
    finally:
        if not keep:
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
    """Create a temporary folder beside `path`, whose content moves there, beside `path`, when the block succeeds."""
    stage = _partial(path)
    with _stage(stage, path) as put:
        yield stage
        put(lambda: put_folder(stage, path.parent))


@contextmanager
def staged_folder(path: str | Path, replaces: str | None = None) -> Iterator[Path]:
    """Create a folder atomically: it appears at `path` when the block succeeds, and not at all if it raises.

    The block writes into the folder that is yielded, a temporary one beside `path`. An existing folder must be empty or
    contain the file `replaces`, which marks folders created in the same way; then all its content is replaced. The
    temporary folder is in the existing one, which is filled at the end: it may be a mount point, or the target of a
    link.
    """
    path = real_path(path)
    refuse_occupied(path, replaces)
    stage = _partial(path / path.name) if path.is_dir() else _partial(path)
    with _stage(stage, path) as put:
        staged = stage / path.name
        staged.mkdir()
        yield staged
        put(lambda: put_folder(staged, path, occupants(path) if path.is_dir() else [], stage))


@contextmanager
def _stage(stage: Path, path: Path) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Create a temporary folder and remove it after the block, unless the block cannot put the finished work in place.

    The block calls the function that is yielded with one that moves the work.
    """
    with writing(path):
        stage.mkdir(parents=True)
    kept = False

    def put(move: Callable[[], None]) -> None:
        nonlocal kept
        try:
            with writing(path, f"{stage} keeps the results"):
                move()
        except Exception:
            kept = True
            raise

    try:
        yield put
    finally:
        if not kept:
            shutil.rmtree(stage, ignore_errors=True)


def refuse_occupied(path: Path, replaces: str | None = None) -> None:
    """Raise DataError unless `path` can be created, is an empty folder, or contains the file `replaces`.

    Entries of the system, such as lost+found, leave a folder empty.
    """
    path = real_path(path)
    if path.is_dir() and (not occupants(path) or (replaces is not None and (path / replaces).is_file())):
        _refuse_locked(path, path)
    elif path.exists():
        found = "a folder that is not empty" if path.is_dir() else "a file"
        raise DataError(f"{path} must be a new or empty folder, but got {found}; choose another location or empty it")
    else:
        refuse_unwritable(path)


def refuse_unwritable(path: Path) -> None:
    """Raise DataError if nothing can be written at `path`, to fail before the work instead of after it."""
    path = path if is_stream(path) else real_path(path)
    if path.is_file() or is_stream(path):
        if not os.access(path, os.W_OK):
            raise DataError(f"{path} must be writable, but got no permission; choose another location")
        return
    for folder in path.parents:
        if folder.is_dir():
            _refuse_locked(folder, path)
            return
        if folder.exists():
            raise DataError(f"{folder} must be a folder, but got a file; choose a location other than {path}")


def _refuse_locked(folder: Path, path: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{folder} must be writable, but got no permission; choose a location other than {path}")


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
