"""Moves of files that neither overwrite anything nor lose a file, whenever the process is killed."""

import filecmp
import os
import shutil
from itertools import count
from pathlib import Path

from .atomic import replace_file


def free_place(path: Path) -> Path:
    """Return a path at which there is nothing yet: this one, or with a number before the ending.

    Example:
        >>> free_place(Path("no/such/a.png"))
        PosixPath('no/such/a.png')
    """
    others = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))
    return path if not os.path.lexists(path) else next(other for other in others if not os.path.lexists(other))


def move_file(source: Path, target: Path) -> Path:
    """Move a file to a new place, and return it: a free one beside `target` if another file is there.

    A move that was interrupted is completed: a file that is at both places is removed at the first one. Nothing happens
    if the source does not exist. If the source is a symbolic link, the target is a hard link to the file that it points
    to, or a copy of it, and that file stays where it is.
    """
    if not os.path.lexists(source):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    if not _same(source, target):
        target = free_place(target)
        try:
            os.link(source.resolve(), target)  # fails if the target exists, unlike a rename
        except FileExistsError:
            return move_file(source, target)
        except OSError:  # another disk, or one without hard links
            replace_file(target, lambda file: shutil.copy2(source, file), durable=True)
    source.unlink(missing_ok=True)
    return target


def _same(source: Path, target: Path) -> bool:
    """Return True if both are one file, or have the same content."""
    return target.is_file() and (source.samefile(target) or filecmp.cmp(source, target, shallow=False))
