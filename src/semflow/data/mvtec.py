"""The layout of MVTec AD."""

from os import PathLike
from pathlib import Path
from typing import Literal

from semflow.data.decoding import mask_size_message, oriented_size
from semflow.data.folder import ImageDataset, Record, find_images, list_images
from semflow.errors import ConfigError, DataError

__all__ = ["MVTecAD"]


class MVTecAD(ImageDataset):
    """A category in the layout of MVTec AD (Bergmann et al. 2019).

    ROOT/train/good, ROOT/test/TYPE, ROOT/ground_truth/TYPE/NAME_mask.png (or NAME.png; any image format). `train` holds
    normal images; in `test`, type `good` is normal and every image of another type has a mask. Existence and size of
    the masks are checked here from the files' headers, before any hour of work; `verify()` decodes everything.

    Args:
        root: the category's folder, or the folder of all categories if `category` is given.
        split: "train" or "test".
        image_size: side of the images in pixels.
        category: a folder in `root`.
        cache: see `ImageDataset`.

    Raises:
        DataError: the layout is another one, an anomalous image has no mask, or a mask has another size than its image.
    """

    def __init__(
        self,
        root: str | PathLike[str],
        split: Literal["train", "test"] = "train",
        image_size: int = 256,
        *,
        category: str | None = None,
        cache: bool = False,
    ) -> None:
        if split not in ("train", "test"):
            raise ConfigError(f"MVTecAD: expected split to be 'train' or 'test', but got {split!r}.")
        folder = Path(root) / category if category else Path(root)
        if not (folder / split).is_dir():
            raise DataError(_missing_split(folder, split))
        if split == "train":
            records = [Record(path, 0) for path in list_images(folder / "train" / "good")]
        else:
            records = _test_records(folder)
        super().__init__(records, image_size, has_masks=True, cache=cache)
        self.root, self.split = folder, split


def _missing_split(folder: Path, split: str) -> str:
    if not folder.is_dir():
        return f"{folder}: expected a folder in the layout of MVTec AD, but there is none; check the path."
    categories = sorted(path.name for path in folder.iterdir() if (path / split).is_dir())
    if categories:
        names = ", ".join(categories)
        return f"{folder}: expected one category, but it holds {names}; name one, as {folder / categories[0]}."
    return f"{folder}: expected a folder {split}/ in it (the layout of MVTec AD), but there is none; check the path."


def _test_records(folder: Path) -> list[Record]:
    list_images(folder / "test")  # raises when there is none
    records = []
    types = sorted(path for path in (folder / "test").iterdir() if path.is_dir() and not path.name.startswith("."))
    for kind in types:
        images = find_images(kind)
        if kind.name == "good":
            records += [Record(path, 0) for path in images]
            continue
        masks_folder = folder / "ground_truth" / kind.name
        masks = {
            path.relative_to(masks_folder).with_suffix("").as_posix(): path
            for path in (find_images(masks_folder) if masks_folder.is_dir() else [])
        }
        for path in images:
            name = path.relative_to(kind).with_suffix("").as_posix()
            mask = masks.get(f"{name}_mask") or masks.get(name)
            if mask is None:
                raise DataError(
                    f"{path}: expected its mask {masks_folder / f'{name}_mask.png'}, but there is none; "
                    "add the mask, or move a normal image to test/good."
                )
            _check_sizes(path, mask)
            records.append(Record(path, 1, mask))
    if not records:
        raise DataError(
            f"{folder / 'test'}: expected subfolders with images, good/ and one for each defect type, but the images "
            "lie directly in it; sort them into subfolders."
        )
    return records


def _check_sizes(image: Path, mask: Path) -> None:
    image_size, mask_size = oriented_size(image), oriented_size(mask)
    if image_size != mask_size:
        raise DataError(mask_size_message(mask, mask_size, image_size))
