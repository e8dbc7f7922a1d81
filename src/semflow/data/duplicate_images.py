"""Finding images that are in two data sets at once, as a test image among those of training."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from semflow.errors import DataError

__all__ = ["duplicates"]


def duplicates(first: Iterable[str | Path], second: Iterable[str | Path]) -> list[tuple[str, str]]:
    """Pairs of files of the same content, one of each list, in the order of the second.

    Only files of equal length are read. Copies that were saved anew, and so have other bytes, are not found.

    Args:
        first, second: paths; what is no file, such as a frame of a video, is passed over.

    Raises:
        DataError: a file cannot be read.

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
    known: dict[Path, bytes] = {}
    found = []
    for path in map(Path, second):
        if path.is_file():
            for other in by_length.get(path.stat().st_size, ()):
                if _content(path, known) == _content(other, known):
                    found.append((str(other), str(path)))
                    break
    return found


def _content(path: Path, known: dict[Path, bytes]) -> bytes:
    if path not in known:
        try:
            with path.open("rb") as file:
                known[path] = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise DataError(f"{path}: expected a file that can be read, but: {error.strerror}; mend it.") from None
    return known[path]
