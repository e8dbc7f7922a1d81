"""The layout of BTAD."""

from os import PathLike
from pathlib import Path
from typing import Literal

from semflow._validation import Size, checked

from .dataset import ImageDataset, Record
from .files import list_images, require_folder
from .layouts import UNPACK, category_folder, with_masks
from .resizing import Resize
from .walking import PassedOver, find_images, scan, subfolders

_KINDS = ("ok", "ko")


class BTAD(ImageDataset):
    """A product of the beanTech anomaly detection dataset (Mishra et al. 2021): 01, 02 or 03.

    ROOT/train/ok, ROOT/test/ok, ROOT/test/ko, ROOT/ground_truth/ko. A mask has the name of its image; the suffixes
    differ between products, and between images and masks. The constructor checks existence and size of the masks.

    Args:
        root: The folder of the product, or of all three if `category` is given.
        split: "train" (ok) or "test" (ok, label 0, then ko, label 1).
        category: "01", "02" or "03".
        image_size, cache, resize: See `ImageDataset`.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "01/train/ok").mkdir(parents=True)
        ...     Image.new("RGB", (32, 32)).save(Path(root, "01/train/ok/0.png"))
        ...     BTAD(root, category="01")
        BTAD(1 normal, image_size=256, has_masks=True)
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
    ) -> None:
        folder = category_folder(root, category, "BTAD", is_btad, "train/ok, test/ok and test/ko")
        normal = require_folder(folder / split / "ok", f"the folder of the normal {split} images of BTAD", UNPACK)
        records = [Record(path, 0) for path in list_images(normal).images]
        if split == "test":
            anomalous = require_folder(folder / "test" / "ko", "the folder of the anomalous images of BTAD", UNPACK)
            images = list_images(anomalous).images
            records += with_masks(images, anomalous, folder / "ground_truth" / "ko", normal="test/ok")
        passed = [
            PassedOver(path, "neither ok/ nor ko/") for path in subfolders(folder / split) if path.name not in _KINDS
        ]
        super().__init__(
            records, image_size, has_masks=True, cache=cache, root=folder,
            passed_over=(*passed, *scan(folder / split).passed_over),
            resize=resize,
        )  # fmt: skip


def is_btad(folder: Path) -> bool:
    """Return True for the layout of a product of BTAD: ok/ and ko/ instead of good/ and defect types."""
    return any(
        (folder / split / kind).is_dir()
        and not (folder / split / "good").is_dir()
        and not find_images(folder / split, recursive=False)
        for split, kind in (("train", "ok"), ("test", "ko"))
    )
