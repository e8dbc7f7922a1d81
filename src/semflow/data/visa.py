"""The layout of VisA, with its official split."""

from os import PathLike
from pathlib import Path
from typing import Literal

from semflow._validation import checked
from semflow.errors import ConfigError, DataError

from .files import list_images
from .folder import ImageDataset, Record
from .masks import with_masks
from .places import category_folder, check_split, require_folder
from .visa_split import split_records

__all__ = ["VisA", "is_visa"]


class VisA(ImageDataset):
    """A category of VisA (Zou et al. 2022) as its archive unpacks.

    ROOT/CATEGORY/Data/Images/{Normal,Anomaly}/*.JPG, ROOT/CATEGORY/Data/Masks/Anomaly/*.png, ROOT/split_csv/1cls.csv.
    The masks are index images, 0 for the background and other values for the types of defect; all of these are
    anomalous. Files and mask sizes are checked here. What the authors' preparation script writes from this
    (train/good, test/good, test/bad, ground_truth/bad) has the layout of MVTec AD: open it with `MVTecAD`.

    Published figures rest on the split file, so nothing stands in for a missing one unless `holdout` asks for it.

    Args:
        root: the folder of all categories if `category` is given, or the category's folder (the split file is then
            looked for in its parent folder).
        split: "train" or "test".
        image_size: side of the images in pixels.
        category: a folder in `root`, such as "pcb1".
        cache: see `ImageDataset`.
        split_file: a CSV file with the columns object, split, label, image, mask; by default split_csv/1cls.csv. A
            split that trains on anomalies (the two-class ones) is refused.
        holdout: n to use no split file: in order of their names, every n-th normal image is for "test" with all
            anomalies, the others are for "train". The official split holds out about one in ten, but others.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     data = Path(root) / "pcb1" / "Data"
    ...     for name in ("Images/Normal/0.JPG", "Images/Anomaly/0.JPG", "Masks/Anomaly/0.png"):
    ...         (data / name).parent.mkdir(parents=True)
    ...         Image.new("L", (8, 8), 1).save(data / name)
    ...     VisA(root, "test", image_size=4, category="pcb1", holdout=1)
    VisA(1 normal, 1 anomalous, image_size=4, has_masks=True)

    Raises:
        ConfigError: both a split file and `holdout`, or a `holdout` below 1.
        DataError: a folder, the split file, an image or a mask is missing, or a mask has another size than its image.
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
        split_file: str | PathLike[str] | None = None,
        holdout: int | None = None,
    ) -> None:
        check_split("VisA", split)
        if holdout is not None and (holdout < 1 or split_file is not None):
            raise ConfigError(
                f"VisA: expected holdout to be at least 1, and no split_file with it, but got holdout={holdout} and "
                f"split_file={split_file!r}; leave one out."
            )
        _refuse_prepared(Path(root) / category if category else Path(root))
        folder = category_folder(root, category, "VisA", is_visa, "Data/Images/Normal in it")
        if holdout is not None:
            records = _held_out(folder, split, holdout)
        else:
            file = Path(split_file) if split_file is not None else folder.absolute().parent / "split_csv" / "1cls.csv"
            records = split_records(folder, split, file)
        super().__init__(records, image_size, has_masks=True, cache=cache)
        self.root, self.split = folder, split


def is_visa(folder: Path) -> bool:
    """Whether a folder is laid out as a category of VisA."""
    return (folder / "Data" / "Images" / "Normal").is_dir()


def _refuse_prepared(folder: Path) -> None:
    if (folder / "train" / "good").is_dir():
        raise DataError(
            f"{folder}: expected Data/Images as VisA's archive has it, but it holds train/good, as the preparation "
            "script makes it; open it with MVTecAD."
        )


def _held_out(folder: Path, split: str, holdout: int) -> list[Record]:
    normal = list_images(folder / "Data" / "Images" / "Normal")
    kept = [path for k, path in enumerate(normal, 1) if (k % holdout == 0) == (split == "test")]
    if not kept:
        raise DataError(
            f"{folder / 'Data' / 'Images' / 'Normal'}: expected normal images for {split} with holdout={holdout}, but "
            f"it holds {len(normal)}, of which none is left; choose another holdout."
        )
    records = [Record(path, 0) for path in kept]
    if split == "test":
        anomalous = require_folder(folder / "Data" / "Images" / "Anomaly", "the anomalous images of VisA")
        images = list_images(anomalous)
        records += with_masks(images, anomalous, folder / "Data" / "Masks" / "Anomaly", normal="Data/Images/Normal")
    return records
