"""Images that are in two datasets at once, such as a test image among the training images."""

import functools
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from semflow.errors import DataError
from semflow.files import hash_file

__all__ = ["duplicates"]


def duplicates(first: Iterable[str | Path], second: Iterable[str | Path]) -> list[tuple[str, str]]:
    """Return pairs of files with the same bytes, one of each list, in the order of the second.

    Only files of equal length are read. Images that were encoded again have other bytes and are not found.

    Args:
        first: Paths of the first list; paths that are not files, such as frames of a video, are ignored.
        second: Paths of the second list.

    Raises:
        DataError: If a file cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name, content in (("a.png", b"one"), ("b.png", b"two"), ("c.png", b"one")):
        ...         _ = (Path(folder) / name).write_bytes(content)
        ...     pairs = duplicates([f"{folder}/a.png", f"{folder}/b.png"], [f"{folder}/c.png"])
        >>> [(Path(a).name, Path(b).name) for a, b in pairs]
        [('a.png', 'c.png')]
    """
    by_length: dict[int, list[Path]] = defaultdict(list)
    for path in map(Path, first):
        if path.is_file():
            by_length[path.stat().st_size].append(path)
    digest = functools.cache(_digest)
    found = []
    for path in map(Path, second):
        if path.is_file():
            for other in by_length.get(path.stat().st_size, ()):
                if digest(path) == digest(other):
                    found.append((str(other), str(path)))
                    break
    return found


def _digest(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise DataError(f"{path} must be readable, but got {error.strerror}; change its permissions") from None
