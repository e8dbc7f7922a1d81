"""The layout of Real-IAD, with its splits in JSON files."""

import json
import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from semflow._validation import Size, checked
from semflow.errors import ConfigError, DataError

from .dataset import ImageDataset, Record
from .files import listed, require_folder
from .layouts import UNPACK, check_mask, check_shared
from .resizing import Resize
from .walking import PassedOver, Scan, scan, subfolders

_IMAGES, _SPLITS = "realiad_", "realiad_jsons"
_DEFECTIVE = r"_NG_.*C[1-5]_"
"""Part of the names of images of defective parts."""


class RealIAD(ImageDataset):
    """A category of Real-IAD (Wang et al. 2024), of which each of five views is an image of its own.

    ROOT/realiad_1024/CATEGORY has the images and masks, or realiad_512, realiad_256 or realiad_raw;
    ROOT/realiad_jsons/CATEGORY.json has the split and the label of each image. Labels are those of the views: where the
    defect of a part in NG/ is not visible, the view is normal.

    Args:
        root: The folder of realiad_1024 and realiad_jsons.
        split: "train" or "test".
        category: Name of the category, such as "audiojack".
        image_size, cache, resize: See `ImageDataset`.
        protocol: The folder of the split: "realiad_jsons" (five views), "realiad_jsons_sv" (the view from above), or
            "realiad_jsons_fuiad_0.1" and others, which have anomalous training images: those of "train" are then
            unlabeled.
        view: Only one of the views, 1 to 5; None takes all in the split.
        resolution: "1024", "512", "256" or "raw"; None takes 1024, or else the only one there is.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "realiad_1024/usb/OK").mkdir(parents=True)
        ...     Image.new("RGB", (32, 32)).save(Path(root, "realiad_1024/usb/OK/usb_0001_OK_C1_1.png"))
        ...     row = {"image_path": "OK/usb_0001_OK_C1_1.png", "anomaly_class": "OK", "mask_path": None}
        ...     Path(root, "realiad_jsons").mkdir()
        ...     _ = Path(root, "realiad_jsons/usb.json").write_text(json.dumps({"train": [row], "test": []}))
        ...     RealIAD(root, category="usb")
        RealIAD(1 normal, image_size=256, has_masks=True)
    """

    @checked
    def __init__(
        self,
        root: str | PathLike[str],
        split: Literal["train", "test"] = "train",
        image_size: Size | None = 256,
        *,
        category: str,
        cache: bool = False,
        resize: Resize = "stretch",
        protocol: str = _SPLITS,
        view: int | None = None,
        resolution: Literal["1024", "512", "256", "raw"] | None = None,
    ) -> None:
        if view is not None and not 1 <= view <= 5:
            raise ConfigError(f"view must be 1 to 5, but got {view}")
        top = require_folder(Path(root), "the folder of Real-IAD")
        images = _images(top, resolution)
        file = _split_file(top, protocol, category)
        content = _read(file)
        meta = content.get("meta")
        normal = meta.get("normal_class", "OK") if isinstance(meta, dict) else "OK"
        folder = require_folder(images / category, "a category of Real-IAD", UNPACK)
        kept = content[split]
        if view is not None:
            kept = [row for row in kept if re.search(rf"_C{view}[_.]", PurePosixPath(row["image_path"]).name)]
        if not kept:
            which = "images" if view is None else f"images of view {view}"
            raise DataError(f"{file} must have {split} {which}, but got none of {len(content[split])}; {UNPACK}")
        noisy = any(row["anomaly_class"] != normal for row in content["train"]) and split == "train"
        records = [_record(folder, row, file, normal) for row in kept]
        check_shared(records)
        for record in records:
            check_mask(record.path, record.mask)
        records = [Record(record.path, -1) if noisy else record for record in records]
        known = {
            _place(folder, row[key], file)
            for row in (*content["train"], *content["test"]) for key in ("image_path", "mask_path") if row.get(key)
        }  # fmt: skip
        found = scan(folder)
        passed = [PassedOver(path, f"not in {file.name}") for path in found.images if path not in known]
        super().__init__(
            records, image_size, has_masks=not noisy, cache=cache, root=top,
            passed_over=(*found.passed_over, *passed), resize=resize,
        )  # fmt: skip

    def part(self, path: str) -> str:
        """Return the name of the part that an image shows, the same for all of its views."""
        file = Path(path)
        return str(file.with_name(re.split(r"_C[1-5][_.]", file.name)[0]))


def is_real_iad(folder: Path) -> bool:
    """Return True for the layout of Real-IAD."""
    return (folder / _SPLITS).is_dir()


def real_iad_categories(top: Path, protocol: str = _SPLITS) -> list[str]:
    """Return the categories that have a split."""
    return sorted({path.stem for place in _places(top, protocol) if place.is_dir() for path in place.glob("*.json")})


def without_masks(images: Iterable[Path], passed_over: Iterable[PassedOver]) -> Scan:
    """Return images without the masks of Real-IAD, NAME_mask.png or NAME.png beside an image NAME.jpg of NG/."""
    found = list(images)
    photos = {path.with_suffix("") for path in found if path.suffix == ".jpg" and re.search(_DEFECTIVE, path.name)}

    def is_mask(path: Path) -> bool:
        return path.suffix == ".png" and path.with_name(path.stem.removesuffix("_mask")) in photos

    masks = [PassedOver(path, "mask") for path in found if is_mask(path)]
    return Scan([path for path in found if not is_mask(path)], [*passed_over, *masks])


def _images(top: Path, resolution: str | None) -> Path:
    found = [path for path in subfolders(top) if path.name.startswith(_IMAGES) and not path.name.startswith(_SPLITS)]
    usual = top / f"{_IMAGES}{resolution or '1024'}"
    if resolution is not None or usual in found:
        return require_folder(usual, f"the images of Real-IAD of resolution {resolution or '1024'}", UNPACK)
    if len(found) != 1:
        names = listed([path.name for path in found]) or "none"
        raise DataError(f"{top} must contain realiad_1024/ or one other resolution, but got {names}; name a resolution")
    return found[0]


def _places(top: Path, protocol: str) -> list[Path]:
    # The archive of the splits is unpacked into the root by some, and into a folder of its name by others.
    return [top / protocol, top / _SPLITS / protocol]


def _split_file(top: Path, protocol: str, category: str) -> Path:
    places = _places(top, protocol)
    for place in places:
        if (file := place / f"{category}.json").is_file():
            return file
    names = real_iad_categories(top, protocol)
    raise DataError(
        f"{places[0] / category}.json must be a split of Real-IAD, but got no such file and "
        f"{listed(names) or 'no others'} beside it; name one of these or unpack realiad_jsons.zip"
    )


def _read(file: Path) -> dict[str, Any]:
    advice = "restore the official file"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} must be a JSON file, but got the error {str(error)!r}; {advice}") from None
    rows: Iterable[Any] = ()
    if isinstance(content, dict) and all(isinstance(content.get(split), list) for split in ("train", "test")):
        rows = (*content["train"], *content["test"])
    whole = all(isinstance(row, dict) and row.get("image_path") and row.get("anomaly_class") for row in rows)
    if not rows or not whole:
        raise DataError(
            f"{file} must have lists train and test with image_path and anomaly_class of each image, but got "
            f"{'rows without them' if rows else 'no rows'}; {advice}"
        )
    return dict(content)


def _record(folder: Path, row: dict[str, Any], file: Path, normal: str) -> Record:
    anomalous = row["anomaly_class"] != normal
    if anomalous and not row.get("mask_path"):
        raise DataError(f"{file} must name a mask of {row['image_path']}, but got none; restore the official file")
    paths = [_place(folder, row[key], file) for key in ("image_path", *(("mask_path",) if anomalous else ()))]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(f"{missing[0]} must be a file named in {file}, but got no such file; {UNPACK}")
    return Record(paths[0], int(anomalous), paths[1] if anomalous else None)


def _place(folder: Path, name: str, file: Path) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{file} must name files in {folder}, but got {name!r}; restore the official file")
    return folder / path
