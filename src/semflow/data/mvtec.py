"""The layout of MVTec AD."""

from os import PathLike
from pathlib import Path
from typing import Literal

from semflow.data.decoding import check_mask_size, decode_image, decode_mask, oriented_size
from semflow.data.files import find_images, list_images, subfolders
from semflow.data.folder import ImageDataset, Record
from semflow.errors import ConfigError, DataError

__all__ = ["MVTecAD", "refuse_categories"]


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

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ("test/good/0.png", "test/hole/0.png", "ground_truth/hole/0_mask.png"):
    ...         (Path(root) / name).parent.mkdir(parents=True)
    ...         Image.new("L", (8, 8), 255).save(Path(root) / name)
    ...     MVTecAD(root, "test", image_size=4)
    MVTecAD(1 normal, 1 anomalous, image_size=4, has_masks=True)

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
        if not folder.is_dir():
            raise DataError(
                f"{folder}: expected a folder in the layout of MVTec AD, but there is none; check the path."
            )
        if not (folder / split).is_dir():
            refuse_categories(folder)
            raise DataError(
                f"{folder}: expected a folder {split}/ in it, as MVTec AD has it, but there is none; check the path."
            )
        if split == "train":
            records = [Record(path, 0) for path in list_images(folder / "train" / "good")]
        else:
            records = _test_records(folder)
        super().__init__(records, image_size, has_masks=True, cache=cache)
        self.root, self.split = folder, split


def refuse_categories(folder: Path) -> None:
    """Raise DataError when a folder holds categories instead of being one."""
    names = [path.name for path in subfolders(folder) if (path / "train").is_dir() or (path / "test").is_dir()]
    if names:
        some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise DataError(f"{folder}: expected one category, but it holds {some}; name one, as {folder / names[0]}.")


def _test_records(folder: Path) -> list[Record]:
    test = folder / "test"
    list_images(test)  # raises when there is none
    if find_images(test, recursive=False):
        raise DataError(
            f"{test}: expected images only in its subfolders, good/ and one for each defect type, but "
            f"{find_images(test, recursive=False)[0].name} lies directly in it; move it."
        )
    records: list[Record] = []
    for kind in subfolders(test):
        images = find_images(kind)
        if kind.name == "good":
            records += [Record(path, 0) for path in images]
        else:
            records += _with_masks(images, kind, folder / "ground_truth" / kind.name)
    return records


def _with_masks(images: list[Path], kind: Path, ground_truth: Path) -> list[Record]:
    """Find each image's mask, and compare their sizes."""
    masks = {path.relative_to(ground_truth).with_suffix(""): path for path in find_images(ground_truth)}
    records = []
    for path in images:
        name = path.relative_to(kind).with_suffix("")
        expected = name.with_name(f"{name.name}_mask")
        mask = masks.get(expected, masks.get(name))
        if mask is None:
            raise DataError(
                f"{path}: expected its mask {ground_truth / expected}.png, but there is none; "
                "add the mask, or move a normal image to test/good."
            )
        if oriented_size(path) != oriented_size(mask):
            # Some orientations are known only after decoding, so ask again before refusing.
            height, width = decode_mask(mask).shape
            check_mask_size(mask, (width, height), decode_image(path).size)
        records.append(Record(path, 1, mask))
    return records
