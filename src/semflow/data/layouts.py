"""Checks shared by the layouts of public datasets: the folder of a category, and the mask of each image."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path

from semflow.errors import DataError

from .dataset import Record
from .files import archives, listed, require_folder
from .masks import check_mask_size
from .reading import decoded_size, oriented_size
from .walking import find_images, subfolders

UNPACK = "unpack the dataset completely"


def category_folder(
    root: str | PathLike[str], category: str | None, name: str, is_category: Callable[[Path], bool], layout: str
) -> Path:
    """Return `root / category`, or `root` without a category; raise DataError unless `is_category` of it is True."""
    top = require_folder(Path(root), f"the folder of {name}")
    folder = top / category if category else top
    if is_category(folder):
        return folder
    others = [path.name for path in subfolders(top) if is_category(path)]
    if others and not category:
        raise DataError(f"{top} must be one category, but got the categories {listed(others)}; name {top / others[0]}")
    if others and not folder.exists():
        raise DataError(
            f"{folder} must be the category {category} of {name}, but got only {listed(others)} in {top}; "
            f"{UNPACK} or name one of these"
        )
    require_folder(folder, f"a category of {name}")
    if packed := archives(folder):
        raise DataError(f"{folder} must contain {layout}, but got the packed archive {packed[0].name}; unpack it there")
    raise DataError(f"{folder} must contain {layout} (the layout of {name}), but got none; check the path")


def tested(test: Path, ground_truth: Path, images: Iterable[Path]) -> list[Record]:
    """Return records of test images, which are in folders of `test`: good, and types of defects with masks."""
    kinds: defaultdict[Path, list[Path]] = defaultdict(list)
    for path in images:
        if path.parent == test:
            raise DataError(
                f"{test} must contain images only in subfolders, good/ and one per defect type, but got {path.name} "
                "directly in it; move it"
            )
        kinds[test / path.relative_to(test).parts[0]].append(path)
    records: list[Record] = []
    for kind, paths in sorted(kinds.items()):
        if kind.name == "good":
            records += [Record(path, 0) for path in paths]
        else:
            records += with_masks(paths, kind, ground_truth / kind.name, suffix="_mask", normal=f"{test.name}/good")
    return records


def with_masks(
    images: Sequence[Path], folder: Path, ground_truth: Path, *, suffix: str = "", normal: str = "good"
) -> list[Record]:
    """Return records of the anomalous images in a folder with their masks, which have the same names plus a suffix."""
    if not images:
        return []
    require_folder(ground_truth, f"the folder of the masks of {folder}", "add the masks")
    masks: defaultdict[Path, list[Path]] = defaultdict(list)
    for path in find_images(ground_truth):
        masks[path.relative_to(ground_truth).with_suffix("")].append(path)
    records = []
    for path in images:
        name = path.relative_to(folder).with_suffix("")
        expected = name.with_name(f"{name.name}{suffix}")
        found = [mask for key in dict.fromkeys((expected, name)) for mask in masks.get(key, ())]
        if not found:
            raise DataError(
                f"{path} must have the mask {ground_truth / expected}.png, but got none; "
                f"add the mask, or move the image to {normal} if it is normal"
            )
        if len(found) > 1:
            raise DataError(f"{path} must have one mask, but got {found[0]} and {found[1]}; remove one")
        records.append(Record(path, 1, found[0]))
    check_shared(records)
    for path, _, mask in records:
        check_mask(path, mask)
    return records


def check_shared(records: Iterable[Record]) -> None:
    """Raise DataError if an image is listed twice, or two images have the same mask."""
    images: set[Path] = set()
    owners: dict[Path, Path] = {}
    for path, _, mask in records:
        if path in images:
            raise DataError(f"{path} must be listed once, but got it twice; remove one of the two rows")
        images.add(path)
        if mask is not None and owners.setdefault(mask, path) != path:
            raise DataError(f"{mask} must be the mask of one image, but got {owners[mask]} and {path}; rename one")


def check_mask(image: Path, mask: Path | None) -> None:
    """Raise DataError if the sizes of a mask and its image differ; read only the headers if they agree."""
    if mask is not None and oriented_size(image) != oriented_size(mask):
        # Some orientations are known only after decoding, so compare the decoded sizes before failing.
        check_mask_size(mask, decoded_size(mask), decoded_size(image))
