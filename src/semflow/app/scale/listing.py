"""Lists of the images to score, from a folder, a text file or a table."""

import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from semflow._optional import import_optional
from semflow.data import PassedOver, open_dataset
from semflow.errors import DataError
from semflow.files import hash_parts

COLUMN = "path"


class Listing(NamedTuple):
    """Ordered images: an absolute folder `root`, and paths relative to it, or absolute ones, as in the results.

    Example:
        >>> listing = Listing(Path("/parts"), ("a.png", "b.png"))
        >>> listing.digest == Listing(Path("/parts"), ("a.png", "c.png")).digest
        False
    """

    root: Path
    names: tuple[str, ...]
    passed_over: tuple[PassedOver, ...] = ()

    @property
    def digest(self) -> str:
        """Digest of the folder and all names, not of the images' content: there may be millions."""
        return hash_parts((str(self.root), *self.names))


def read_listing(path: str | PathLike[str]) -> Listing:
    r"""Read the images of a folder, a text file or a table.

    - A folder or a single image, as `semflow predict` takes it: all images in it, by their relative paths.
    - A `.txt` file in UTF-8 with one path per line. Empty lines are ignored.
    - A `.parquet` file, or a folder of such files whose name ends in `.parquet`: the column `path`.

    Relative paths in a file are relative to its folder. No image may be listed twice.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "list.txt").write_text("a/1.png\na/2.png")
        ...     read_listing(Path(folder, "list.txt")).names
        ('a/1.png', 'a/2.png')
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} must be a folder, an image, a list or a table, but got none; check the path")
    if path.suffix.lower() == ".parquet":
        return _listed(path, _read_table(path))
    if path.suffix.lower() == ".txt" and path.is_file():
        return _listed(path, _read_list(path))
    dataset = open_dataset(path, "predict")
    root = dataset.root or path.parent
    names = tuple(Path(file).relative_to(root).as_posix() for file in dataset.paths)
    return Listing(Path(os.path.abspath(root)), names, dataset.passed_over)  # noqa: PTH100 - resolve would follow links


def _read_list(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")  # file names may contain any bytes
    except OSError as error:
        raise DataError(f"{path} must be readable, but got {error.strerror}; allow it") from None
    if "\0" in text:
        raise DataError(f"{path} must have one path per line, but got binary data; give a list, a table or a folder")
    return [line for line in (line.removesuffix("\r") for line in text.split("\n")) if line.strip()]


def _read_table(path: Path) -> list[str]:
    arrow, parquet = import_optional("pyarrow"), import_optional("pyarrow.parquet")
    try:
        schema = parquet.ParquetDataset(path).schema
        if COLUMN not in schema.names:
            raise DataError(f"{path} must have a column {COLUMN}, but got {', '.join(schema.names)}; rename one")
        names = parquet.read_table(path, columns=[COLUMN])[COLUMN].to_pylist()
    except (arrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{path} must be a Parquet table, but got {reason}; write it again") from None
    for row, name in enumerate(names):
        if not (isinstance(name, str) and name.strip()):
            raise DataError(f"{path} must have a path in each row, but got {name!r} in row {row}; correct it")
    return list(names)


def _listed(path: Path, names: Sequence[str]) -> Listing:
    if not names:
        raise DataError(f"{path} must contain paths of images, but got none; check the file")
    root = Path(os.path.abspath(path.parent))  # noqa: PTH100 - resolve would follow links
    seen: dict[str, int] = {}
    for place, name in enumerate(names, 1):
        before = seen.setdefault(os.path.normpath(os.path.join(root, name)), place)  # noqa: PTH118 - faster for millions
        if before != place:
            raise DataError(
                f"{path} must list each image once, but got {name} as entries {before} and {place}; remove one"
            )
    return Listing(root, tuple(names))
