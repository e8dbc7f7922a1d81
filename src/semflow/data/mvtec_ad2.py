"""The layout of MVTec AD 2."""

from os import PathLike
from pathlib import Path
from typing import Literal

from semflow._validation import Size, checked

from .dataset import ImageDataset, Record
from .files import list_images, require_folder
from .layouts import UNPACK, category_folder, tested
from .resizing import Resize
from .walking import PassedOver, Scan

MASKS = "ground_truth"
_FOLDERS = {
    "train": "train/good",
    "validation": "validation/good",
    "test": "test_public",
    "private": "test_private",
    "private_mixed": "test_private_mixed",
}


class MVTecAD2(ImageDataset):
    """A category of MVTec AD 2 (Heckler-Kram et al. 2025).

    ROOT/train/good and ROOT/validation/good are normal; ROOT/test_public/good and ROOT/test_public/bad have masks in
    ROOT/test_public/ground_truth/bad/NAME_mask.png. The images of ROOT/test_private and ROOT/test_private_mixed (seen
    and unseen lighting) have neither labels nor masks: an evaluation server has them.

    Args:
        root: The folder of the category, or of all categories if `category` is given.
        split: "train"; "validation", normal images for the threshold; "test", the public one; "private" or
            "private_mixed".
        category: A folder in `root`, such as "can".
        image_size, cache, resize: See `ImageDataset`.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "can/test_private").mkdir(parents=True)
        ...     Image.new("RGB", (32, 32)).save(Path(root, "can/test_private/000.png"))
        ...     MVTecAD2(root, "private", category="can")
        MVTecAD2(1 unlabeled, image_size=256, has_masks=False)
    """

    @checked
    def __init__(
        self,
        root: str | PathLike[str],
        split: Literal["train", "validation", "test", "private", "private_mixed"] = "train",
        image_size: Size | None = 256,
        *,
        category: str | None = None,
        cache: bool = False,
        resize: Resize = "stretch",
    ) -> None:
        part = _FOLDERS[split]
        folder = category_folder(root, category, "MVTec AD 2", lambda path: (path / part).is_dir(), f"a folder {part}/")
        found = list_public(folder / part) if split == "test" else list_images(folder / part)
        label = 0 if split in ("train", "validation") else -1
        records = (
            public_records(folder / part, found.images)
            if split == "test"
            else [Record(path, label) for path in found.images]
        )
        super().__init__(
            records, image_size, has_masks=label == 0 or split == "test", cache=cache, root=folder,
            passed_over=found.passed_over, resize=resize,
        )  # fmt: skip


def is_mvtec_ad2(folder: Path) -> bool:
    """Return True for the layout of a category of MVTec AD 2."""
    return (folder / "test_public").is_dir() and not (folder / "test").is_dir()


def is_public_test(folder: Path) -> bool:
    """Return True for test_public/, whose masks are in it and not beside it."""
    return all((folder / name).is_dir() for name in ("good", MASKS)) and not (folder / "train").is_dir()


def list_public(folder: Path) -> Scan:
    """Return the images in test_public/ without the masks, and what was passed over."""
    images, passed_over = list_images(folder)
    masks = folder / MASKS
    kept = [path for path in images if masks not in path.parents]
    return Scan(kept, [*passed_over, PassedOver(masks, "masks")] if len(kept) < len(images) else passed_over)


def public_records(folder: Path, images: list[Path]) -> list[Record]:
    """Return the records of test_public/."""
    require_folder(folder / MASKS, "the folder of the masks of MVTec AD 2", UNPACK)
    return tested(folder, folder / MASKS, images)
