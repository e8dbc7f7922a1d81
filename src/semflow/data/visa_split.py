"""VisA's split file: which images of a category are for training, and which for testing."""

import csv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from semflow.errors import DataError

from .folder import Record
from .masks import check_mask
from .places import listed

__all__ = ["split_records"]

_COLUMNS = ("object", "split", "label", "image", "mask")


class _Row(NamedTuple):
    line: int
    category: str
    split: str
    label: str
    image: str
    mask: str


def split_records(folder: Path, split: str, file: Path) -> list[Record]:
    """The images of a category in one split, normal ones first, each in the order of their names.

    Args:
        folder: the category's folder; its name is the object in the file.
        split: "train" or "test".
        file: a CSV file with the columns object, split, label, image, mask.

    Raises:
        DataError: there is no such file, it is no one-class split of this category, or it names missing files.
    """
    if not file.is_file():
        raise DataError(
            f"{file}: expected VisA's split file, but there is none; take split_csv/ from the archive or from "
            "github.com/amazon-science/spot-diff, or split otherwise with holdout=10."
        )
    name = folder.absolute().name
    rows = list(_rows(file))
    chosen = [row for row in rows if row.category == name]
    if not chosen:
        has = listed(sorted({row.category for row in rows}))
        raise DataError(
            f"{file}: expected rows of the object {name}, but it has only {has}; name the folder as it was."
        )
    for row in chosen:
        if row.split == "train" and row.label != "normal":
            raise DataError(
                f"{file}: expected a one-class split, but line {row.line} trains on an anomaly; use 1cls.csv."
            )
    chosen = sorted((row for row in chosen if row.split == split), key=lambda row: row.image)
    if not chosen:
        raise DataError(f"{file}: expected {split} rows of {name}, but there are none; take the official file.")
    return _existing(folder, file, chosen)


def _rows(file: Path) -> Iterator[_Row]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text)
            missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{file}: expected the columns {', '.join(_COLUMNS)}, but {', '.join(missing)} is missing; "
                    "take the official split file."
                )
            for cells in reader:
                row = _Row(reader.line_num, *((cells[column] or "").strip() for column in _COLUMNS))
                if row.split not in ("train", "test") or not row.image:
                    raise DataError(
                        f"{file}: expected a split, train or test, and an image in line {row.line}, but got "
                        f"{row.split!r} and {row.image!r}; take the official split file."
                    )
                yield row
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file}: expected a CSV file, but: {error}; take the official split file.") from None


def _existing(folder: Path, file: Path, rows: list[_Row]) -> list[Record]:
    """Records of rows, after every file that they name has been found."""

    def located(name: str) -> Path:
        # The names start with the category's folder, which may be a link or be seen from within.
        return folder.joinpath(*PurePosixPath(name).parts[1:])

    for row in rows:
        if row.label != "normal" and not row.mask:
            raise DataError(
                f"{file}: expected a mask of the anomaly in line {row.line}, but got none; take the official file."
            )
    records = [Record(located(row.image), 0) for row in rows if row.label == "normal"]
    records += [Record(located(row.image), 1, located(row.mask)) for row in rows if row.label != "normal"]
    for what, paths in (
        ("image", [record.path for record in records]),
        ("mask", [record.mask for record in records if record.mask is not None]),
    ):
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise DataError(
                f"{missing[0]}: expected the {what}, which {file} names, but there is none ({len(missing)} of "
                f"{len(paths)} are missing); unpack the data set completely."
            )
    for record in records:
        if record.mask is not None:
            check_mask(record.path, record.mask)
    return records
