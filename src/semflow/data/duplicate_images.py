"""Images that are in two datasets at once, such as a test image among the training images."""

import functools
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from semflow.errors import DataError
from semflow.files import hash_file


def duplicates(first: Iterable[str | Path], second: Iterable[str | Path]) -> list[tuple[str, str]]:
    """Return pairs of files with the same bytes, one of each list, in the order of the second.

    Only files of equal length are read. Images that were encoded again have other bytes and are not found. Paths that
    are not files, such as frames of a video, are ignored.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     a, b = (Path(folder) / name for name in ("a.png", "b.png"))
        ...     _ = a.write_bytes(b"one"), b.write_bytes(b"one")
        ...     duplicates([a], [b]) == [(str(a), str(b))]
        True
    """
    by_length: dict[int, list[Path]] = defaultdict(list)
    for path in filter(Path.is_file, map(Path, first)):
        by_length[path.stat().st_size].append(path)

    @functools.cache
    def digest(path: Path) -> str:
        try:
            return hash_file(path)
        except OSError as error:
            raise DataError(f"{path} must be readable, but got {error.strerror}; change its permissions") from None

    found = []
    for path in filter(Path.is_file, map(Path, second)):
        candidates = by_length.get(path.stat().st_size, ())
        same = next((other for other in candidates if digest(path) == digest(other)), None)
        if same is not None:
            found.append((str(same), str(path)))
    return found
