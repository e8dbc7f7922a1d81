"""The layout of VisA, with its official split."""

import csv
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Literal

from semflow._validation import Size, checked
from semflow.errors import ConfigError, DataError

from .dataset import ImageDataset, Record
from .files import list_images, listed, require_folder
from .layouts import UNPACK, category_folder, check_mask, check_shared, with_masks
from .resizing import Resize
from .walking import PassedOver, scan

_COLUMNS = ("object", "split", "label", "image", "mask")
_OFFICIAL = "use the official split file"


class VisA(ImageDataset):
    """A category of VisA (Zou et al. 2022) as unpacked from its archive.

    ROOT/CATEGORY/Data/Images/{Normal,Anomaly}/*.JPG, ROOT/CATEGORY/Data/Masks/Anomaly/*.png, ROOT/split_csv/1cls.csv.
    The constructor checks files and mask sizes. The output of the authors' preparation script (train/good, test/good,
    test/bad, ground_truth/bad) has the layout of MVTec AD: open it with `MVTecAD`.

    Args:
        root: The folder of all categories if `category` is given, else the folder of the category, with the split file
            in its parent folder.
        split: "train" or "test".
        category: A folder in `root`, such as "pcb1".
        image_size, cache, resize: See `ImageDataset`.
        split_file: A CSV file with the columns object, split, label, image, mask; split_csv/1cls.csv by default.
            Splits that train on anomalies (the two-class ones) are an error.
        holdout: Use no split file, on which published results depend: in the order of their names, every `holdout`-th
            normal image is in "test", with all anomalies, and the others are in "train".

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "pcb1/Data/Images/Normal").mkdir(parents=True)
        ...     Image.new("RGB", (32, 32)).save(Path(root, "pcb1/Data/Images/Normal/0.png"))
        ...     VisA(root, category="pcb1", holdout=10)
        VisA(1 normal, image_size=256, has_masks=True)
    """

    @checked
    def __init__(
        self,
        root: str | PathLike[str],
        split: Literal["train", "test"] = "train",
        image_size: Size = 256,
        *,
        category: str | None = None,
        cache: bool = False,
        resize: Resize = "stretch",
        split_file: str | PathLike[str] | None = None,
        holdout: int | None = None,
    ) -> None:
        if holdout is not None and (holdout < 1 or split_file is not None):
            raise ConfigError(
                f"holdout must be at least 1 and given without split_file, but got holdout={holdout} and "
                f"split_file={split_file!r}; leave one out"
            )
        given = Path(root) / category if category else Path(root)
        if (given / "train" / "good").is_dir():
            raise DataError(
                f"{given} must contain Data/Images as in VisA's archive, but got train/good from the preparation "
                "script; open it with MVTecAD"
            )
        folder = category_folder(root, category, "VisA", is_visa, "Data/Images/Normal")
        found = scan(folder / "Data" / "Images")
        passed = found.passed_over
        if holdout is not None:
            records = _held_out(folder, split, holdout)
        else:
            file = Path(split_file) if split_file is not None else folder.absolute().parent / "split_csv" / "1cls.csv"
            records, known = _split_records(folder, split, file)
            passed += [PassedOver(path, f"not in {file.name}") for path in found.images if path not in known]
        super().__init__(
            records, image_size, has_masks=True, cache=cache, root=folder, passed_over=passed, resize=resize
        )


def is_visa(folder: Path) -> bool:
    """Return True for the layout of a category of VisA."""
    return (folder / "Data" / "Images" / "Normal").is_dir()


def _held_out(folder: Path, split: str, holdout: int) -> list[Record]:
    images, masks = folder / "Data" / "Images", folder / "Data" / "Masks"
    normal = list_images(images / "Normal").images
    kept = [path for k, path in enumerate(normal, 1) if (k % holdout == 0) == (split == "test")]
    if not kept:
        raise DataError(
            f"{images / 'Normal'} must contain {split} images with holdout={holdout}, but got none of {len(normal)}; "
            "choose another holdout"
        )
    records = [Record(path, 0) for path in kept]
    if split == "test":
        anomalous = require_folder(images / "Anomaly", "the folder of the anomalous images of VisA")
        records += with_masks(list_images(anomalous).images, anomalous, masks / "Anomaly", normal="Data/Images/Normal")
    return records


def _split_records(folder: Path, split: str, file: Path) -> tuple[list[Record], set[Path]]:
    """Return the images of one split, normal ones first, each in the order of their names; and those of all splits."""
    if not file.is_file():
        raise DataError(
            f"{file} must be VisA's split file, but got no such file; take split_csv/ from the archive or from "
            "github.com/amazon-science/spot-diff, or split the images with holdout=10"
        )
    name = folder.absolute().name
    rows = _rows(file)
    chosen = [row for row in rows if row["object"] == name]
    if not chosen:
        found = listed(sorted({row["object"] for row in rows}))
        raise DataError(f"{file} must have rows of {name}, but got only {found}; restore the original folder name")
    for row in chosen:
        if row["split"] == "train" and row["label"] != "normal":
            raise DataError(f"{file} must train on normal images, but got line {row['line']}; use 1cls.csv")
    records = []
    known: set[Path] = set()
    for row in sorted(chosen, key=lambda row: (row["label"] != "normal", row["image"])):
        known.add(_place(folder, row["image"]))
        if row["split"] == split:
            anomalous = row["label"] != "normal"
            if anomalous and not row["mask"]:
                raise DataError(f"{file} must name a mask in line {row['line']}, but got none; {_OFFICIAL}")
            image, mask = (_place(folder, row[column]) for column in ("image", "mask"))
            records.append(Record(image, int(anomalous), mask if anomalous else None))
    if not records:
        raise DataError(f"{file} must have {split} rows of {name}, but got none; {_OFFICIAL}")
    masks = [record.mask for record in records if record.mask is not None]
    for kind, paths in (("image", [record.path for record in records]), ("mask", masks)):
        if missing := [path for path in paths if not path.is_file()]:
            raise DataError(
                f"{missing[0]} must be the {kind} named in {file}, but got no such file ({len(missing)} of "
                f"{len(paths)} are missing); {UNPACK}"
            )
    check_shared(records)
    for record in records:
        check_mask(record.path, record.mask)
    return records, known


def _place(folder: Path, name: str) -> Path:
    """Return the path of a name, which starts with the category's folder: it may be a link or the working directory."""
    return folder.joinpath(*PurePosixPath(name).parts[1:])


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text)
            if missing := [column for column in _COLUMNS if column not in (reader.fieldnames or ())]:
                raise DataError(
                    f"{file} must have the columns {', '.join(_COLUMNS)}, but got no {', '.join(missing)}; {_OFFICIAL}"
                )
            rows = [
                {**{c: (cells[c] or "").strip() for c in _COLUMNS}, "line": str(reader.line_num)} for cells in reader
            ]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file} must be a CSV file, but got the error {str(error)!r}; {_OFFICIAL}") from None
    for row in rows:
        if row["split"] not in ("train", "test") or not row["image"]:
            raise DataError(
                f"{file} must have a split, train or test, and an image in line {row['line']}, but got "
                f"{row['split']!r} and {row['image']!r}; {_OFFICIAL}"
            )
    return rows
