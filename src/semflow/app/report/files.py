"""Outputs that are either whole or not there."""

__all__ = ["naming", "refuse_occupied", "refuse_unwritable", "staged_folder", "write_atomic"]

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from semflow.errors import DataError
from semflow.training import checkpoint

FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # no system has all of errno's names


def write_atomic(path: str | Path, content: bytes | str) -> Path:
    """Write a file so that whoever looks sees the old one or the whole new one.

    The content goes to a temporary file in the same folder, which then takes the name in one step. Text is written as
    UTF-8, with escapes for what has none (names of files may hold any bytes). Missing parent folders are made.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> write_atomic(Path(folder.name) / "a" / "scores.csv", "name,score").read_text()
    'name,score'
    >>> folder.cleanup()
    """
    path = Path(path)
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomic(path, lambda file: file.write_bytes(data) and None)
    return path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say of which output it was that the system refused something: a full disk's error names no file.

    >>> with naming(Path("results")):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    ...
    semflow.errors.DataError: output results cannot be written: No space left on device; free some space, or choose ...
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        advice = "free some space, or " if error.errno in FULL else ""
        raise DataError(f"output {path} cannot be written: {reason}; {advice}choose another place") from error


@contextmanager
def staged_folder(path: str | Path, replaces: str | None = None) -> Iterator[Path]:
    """A folder that appears under its name when the block ends well, and not at all when it raises.

    Yields a hidden folder beside `path` to write into.

    Args:
        path: the folder to make.
        replaces: a file that marks folders made in the same way; a former one, with all that is in it, makes way.

    Raises:
        DataError: `path` is a file, or a folder that is not empty: nothing of the user's is overwritten. Or the system
            refuses to write.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     with staged_folder(Path(parent) / "results") as staged:
    ...         _ = (staged / "scores.csv").write_text("name,score")
    ...     sorted(p.relative_to(parent).as_posix() for p in Path(parent).rglob("*"))
    ['results', 'results/scores.csv']
    """
    path = Path(path).absolute()
    refuse_occupied(path, replaces)
    # Beside `path`, so that moving it there stays within one file system.
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with naming(path):
        staged.mkdir(parents=True)
    try:
        yield staged
        if replaces is not None and (path / replaces).is_file():
            shutil.rmtree(path)
        elif path.is_dir():
            path.rmdir()  # empty, as checked; some systems do not rename onto a folder
        staged.replace(path)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def refuse_occupied(path: Path, replaces: str | None = None) -> None:
    """Raise DataError unless `path` can be made, or is an empty folder, or holds the file `replaces`."""
    if path.is_dir() and (not any(path.iterdir()) or (replaces is not None and (path / replaces).is_file())):
        return
    if path.exists():
        kind = "is not empty" if path.is_dir() else "is a file"
        raise DataError(f"output {path} {kind}, expected a new or empty folder; choose another one or empty it")
    refuse_unwritable(path)


def refuse_unwritable(path: Path) -> None:
    """Raise DataError if nothing can be made at `path`: said before the work, and not when its result is lost.

    >>> refuse_unwritable(Path(__file__) / "results")
    Traceback (most recent call last):
    ...
    semflow.errors.DataError: output ...: .../files.py is a file, expected a folder to write into; choose another place
    """
    for folder in path.absolute().parents:
        if folder.is_dir():
            if not os.access(folder, os.W_OK | os.X_OK):
                raise DataError(
                    f"output {path}: no permission to write into {folder}; choose another place or allow it"
                )
            return
        if folder.exists():
            raise DataError(f"output {path}: {folder} is a file, expected a folder to write into; choose another place")
