"""The layout of BTAD."""

from os import PathLike
from pathlib import Path
from typing import Literal

from semflow._validation import checked

from .files import find_images, list_images
from .folder import ImageDataset, Record
from .masks import with_masks
from .places import category_folder, check_split, require_folder

__all__ = ["BTAD", "is_btad"]


class BTAD(ImageDataset):
    """A product of the beanTech anomaly detection data set (Mishra et al. 2021): 01, 02 or 03.

    ROOT/train/ok, ROOT/test/ok, ROOT/test/ko, ROOT/ground_truth/ko. A mask has its image's name; the endings differ
    between products, and between images and masks of one product. The masks are looked for and measured here.

    Args:
        root: the product's folder, or the folder of all three if `category` is given.
        split: "train" (ok) or "test" (ok, label 0, then ko, label 1).
        image_size: side of the images in pixels.
        category: "01", "02" or "03".
        cache: see `ImageDataset`.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ("test/ok/0.bmp", "test/ko/1.bmp", "ground_truth/ko/1.png"):
    ...         (Path(root) / "01" / name).parent.mkdir(parents=True)
    ...         Image.new("L", (8, 8), 255).save(Path(root) / "01" / name)
    ...     BTAD(root, "test", image_size=4, category="01")
    BTAD(1 normal, 1 anomalous, image_size=4, has_masks=True)

    Raises:
        DataError: a folder is missing, an anomalous image has no mask, or a mask has another size than its image.
    """

    @checked
    def __init__(
        self,
        root: str | PathLike[str],
        split: Literal["train", "test"] = "train",
        image_size: int = 256,
        *,
        category: str | None = None,
        cache: bool = False,
    ) -> None:
        check_split("BTAD", split)
        folder = category_folder(root, category, "BTAD", is_btad, "train/ok, test/ok and test/ko in it")
        normal = require_folder(folder / split / "ok", f"the normal images of BTAD's {split} split", _UNPACK)
        records = [Record(path, 0) for path in list_images(normal)]
        if split == "test":
            anomalous = require_folder(folder / "test" / "ko", "the anomalous images of BTAD's test split", _UNPACK)
            images = list_images(anomalous)
            records += with_masks(images, anomalous, folder / "ground_truth" / "ko", normal="test/ok")
        super().__init__(records, image_size, has_masks=True, cache=cache)
        self.root, self.split = folder, split


def is_btad(folder: Path) -> bool:
    """Whether a folder is laid out as a product of BTAD: ok/ and ko/, where MVTec AD has good/ and defect types."""
    return any((folder / name).is_dir() and _only_images_below(folder / name) for name in ("train/ok", "test/ko"))


def _only_images_below(folder: Path) -> bool:
    return not (folder.parent / "good").is_dir() and not find_images(folder.parent, recursive=False)


_UNPACK = "unpack the data set completely"
