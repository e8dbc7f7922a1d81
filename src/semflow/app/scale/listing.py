"""What is to be scored: the images of a folder, a list or a table, each once and always in the same order."""

__all__ = ["Listing", "read_listing"]

import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from semflow._optional import import_optional
from semflow.data import open_dataset
from semflow.errors import DataError
from semflow.files import hash_parts

COLUMN = "path"


class Listing(NamedTuple):
    """Images by name; the file of one is `root / name`, which is the name itself where that is absolute.

    Args:
        root: an absolute folder.
        names: in order, as the rows of the result call them.

    Example:
        >>> listing = Listing(Path("/parts"), ("a.png", "b.png"))
        >>> listing.digest == Listing(Path("/parts"), ("a.png", "c.png")).digest
        False
    """

    root: Path
    names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """A hash of the folder and all names. The images are not read for it: there may be millions."""
        return hash_parts((str(self.root), *self.names))


def read_listing(path: str | PathLike[str]) -> Listing:
    """The images of a folder, of a list or of a table.

    - A folder, or one image: as `semflow predict` takes it, all images under it by their relative paths.
    - A `.txt` file: a path a line, UTF-8. Empty lines do not count.
    - A `.parquet` file, or a folder of them that is called so: its column `path`.

    Relative paths in a list or a table are relative to the folder that it lies in.

    Args:
        path: of one of these.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "list.txt").write_text("a/1.png\\na/2.png\\n")
    ...     listing = read_listing(Path(folder) / "list.txt")
    >>> listing.names
    ('a/1.png', 'a/2.png')

    Raises:
        DataError: there is nothing there, nothing in it, or an image twice.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: expected images, a list or a table, but there is nothing; check the path.")
    if path.suffix.lower() == ".parquet":
        return _once(path, _of_table(path))
    if path.suffix.lower() == ".txt" and path.is_file():
        return _once(path, _of_list(path))
    dataset = open_dataset(path, "predict")
    root = Path(getattr(dataset, "root", path.parent))
    names = tuple(Path(file).relative_to(root).as_posix() for file in dataset.paths)
    return Listing(Path(os.path.abspath(root)), names)  # noqa: PTH100 - links stay as they are


def _of_list(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")  # names of files may hold any bytes
    except OSError as error:
        raise DataError(f"{path}: expected a list that can be read, but: {error.strerror}; look at it.") from None
    if "\0" in text:
        raise DataError(f"{path}: expected a path a line, but it is no text; name a list, a table or a folder.")
    return [line for line in (line.removesuffix("\r") for line in text.split("\n")) if line.strip()]


def _of_table(path: Path) -> list[str]:
    arrow, parquet = import_optional("pyarrow"), import_optional("pyarrow.parquet")
    try:
        schema = parquet.ParquetDataset(path).schema
        if COLUMN not in schema.names:
            raise DataError(f"{path}: expected a column {COLUMN}, but it has {', '.join(schema.names)}; rename one.")
        names = parquet.read_table(path, columns=[COLUMN])[COLUMN].to_pylist()
    except (arrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{path}: expected a Parquet table, but: {reason}; write it again.") from None
    for row, name in enumerate(names):
        if not (isinstance(name, str) and name.strip()):
            raise DataError(f"{path}: expected a path in each row of {COLUMN}, but row {row} holds {name!r}; mend it.")
    return list(names)


def _once(path: Path, names: Sequence[str]) -> Listing:
    """A listing that names no image twice: every image is to have one row."""
    if not names:
        raise DataError(f"{path}: expected the paths of images, but there is none; check the file.")
    root = Path(os.path.abspath(path.parent))  # noqa: PTH100 - links stay as they are
    seen: dict[str, int] = {}
    for place, name in enumerate(names, 1):
        before = seen.setdefault(os.path.normpath(os.path.join(root, name)), place)  # noqa: PTH118 - a million times
        if before != place:
            raise DataError(f"{path}: expected each image once, but {name} is the {before}. and the {place}.; mend it.")
    return Listing(root, tuple(names))
