"""The layout of MVTec LOCO AD, with its saturation thresholds."""

import json
from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semflow._validation import Size, checked
from semflow.errors import DataError
from semflow.metrics import Defect

from .dataset import ImageDataset, Record
from .files import list_images, require_folder
from .layouts import UNPACK, category_folder, check_mask
from .masks import check_mask_size, decode_mask
from .reading import opened, upright
from .resizing import Resize, resize_mask
from .walking import find_images, subfolders

CONFIG = "defects_config.json"
_ANOMALIES = {"all": "", "logical": "logical_anomalies", "structural": "structural_anomalies"}


class _Saturation(NamedTuple):
    threshold: float
    relative: bool


class MVTecLOCO(ImageDataset):
    """A category of MVTec LOCO AD (Bergmann et al. 2022).

    ROOT/train/good and ROOT/validation/good are normal; ROOT/test has good, logical_anomalies and structural_anomalies.
    An anomalous image TYPE/NAME.png has a mask for each of its defects, ROOT/ground_truth/TYPE/NAME/000.png and so on;
    its anomaly mask is their union. ROOT/defects_config.json has the saturation of each kind of defect, which sPRO
    needs: see `defects`.

    Args:
        root: The folder of the category, or of all categories if `category` is given.
        split: "train", "validation" or "test".
        category: A folder in `root`, such as "juice_bottle".
        image_size, cache, resize: See `ImageDataset`.
        anomalies: Which anomalous images are in "test", beside the good ones: "all", "logical" or "structural".
            Published figures are the mean of the results for the last two.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "pushpins/train/good").mkdir(parents=True)
        ...     Image.new("RGB", (32, 32)).save(Path(root, "pushpins/train/good/000.png"))
        ...     MVTecLOCO(root, category="pushpins")
        MVTecLOCO(1 normal, image_size=256, has_masks=True)
    """

    @checked
    def __init__(
        self,
        root: str | PathLike[str],
        split: Literal["train", "validation", "test"] = "train",
        image_size: Size | None = 256,
        *,
        category: str | None = None,
        cache: bool = False,
        resize: Resize = "stretch",
        anomalies: Literal["all", "logical", "structural"] = "all",
    ) -> None:
        folder = category_folder(root, category, "MVTec LOCO AD", lambda path: (path / split).is_dir(), f"{split}/")
        found = list_images(folder / split if split == "test" else folder / split / "good")
        records = []
        for path in found.images:
            kind = path.parent.name if split == "test" else "good"
            if kind == "good":
                records.append(Record(path, 0))
            elif kind.startswith(_ANOMALIES[anomalies]):
                records.append(Record(path, 1, _masks_of(path, folder / "ground_truth" / kind)))
        self._numbers = {str(record.path): number for number, record in enumerate(records)}
        self._saturations: dict[int, _Saturation] | None = None
        super().__init__(
            records, image_size, has_masks=True, cache=cache, root=folder, passed_over=found.passed_over, resize=resize
        )

    def read_mask(self, index: int, image_size: tuple[int, int]) -> NDArray[np.bool_]:
        """Decode the masks of an image and resize their union; arguments as in `ImageDataset.read_mask`."""
        folder = self.records[index].mask
        if folder is None:
            return super().read_mask(index, image_size)
        masks = [decode_mask(file) for file in find_images(folder, recursive=False)]
        for file, mask in zip(find_images(folder, recursive=False), masks, strict=True):
            check_mask_size(file, (mask.shape[1], mask.shape[0]), image_size)
        return resize_mask(np.logical_or.reduce(masks), self.size_of(image_size), self.resize)

    def defects(self, path: str) -> list[Defect]:
        """Read the defects of an image by its path: their masks at the size of the data set, and their saturations.

        A mask's gray level is that of its kind in defects_config.json, whose threshold is a number of pixels, or a
        share of the area if it is relative. At another size, the number of pixels is that share of the area which it
        is at the original size. A defect that vanishes at that size is left out.

        Raises:
            DataError: If defects_config.json is missing or broken, or has no entry for a gray level.
        """
        folder = self.records[self._numbers[path]].mask
        found = []
        for file in [] if folder is None else find_images(folder, recursive=False):
            with opened(file) as image:
                turned = upright(image)
                levels = np.asarray(turned if turned.mode in ("L", "P") else turned.convert("L"))
            size = self.size_of((levels.shape[1], levels.shape[0]))
            for level in np.unique(levels[levels > 0]).tolist():
                mask = levels == level
                resized = resize_mask(mask, size, self.resize)
                if resized.any():
                    share = self._share(level, int(mask.sum()), file)
                    found.append(Defect(resized, share * int(resized.sum())))
        return found

    def _share(self, level: int, area: int, file: Path) -> float:
        """Return the share of a defect's area that saturates it."""
        config = Path(self.root or "") / CONFIG
        if self._saturations is None:
            self._saturations = _read_config(config)
        if level not in self._saturations:
            raise DataError(f"{config} must have an entry for pixel value {level} of {file}, but got none; {UNPACK}")
        threshold, relative = self._saturations[level]
        return min(1.0, threshold if relative else threshold / area)


def is_mvtec_loco(folder: Path) -> bool:
    """Return True for the layout of a category of MVTec LOCO AD: a folder of masks for each anomalous image."""
    truths = [folder / "ground_truth" / kind for kind in _ANOMALIES.values() if kind]
    return any(truth.is_dir() and bool(subfolders(truth)) for truth in truths)


def _masks_of(image: Path, truth: Path) -> Path:
    """Return the folder of the masks of an image, after a look at their headers."""
    folder = require_folder(truth / image.stem, f"the folder of the masks of {image}", "add the masks")
    masks = find_images(folder, recursive=False)
    if not masks:
        raise DataError(f"{folder} must contain the masks of {image}, but got none; {UNPACK}")
    for mask in masks:
        check_mask(image, mask)
    return folder


def _read_config(file: Path) -> dict[int, _Saturation]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        return {
            int(entry["pixel_value"]): _Saturation(
                _positive(entry["saturation_threshold"]), bool(entry["relative_saturation"])
            )
            for entry in entries
        }
    except FileNotFoundError:
        raise DataError(f"{file} must have the saturations of the defects, but got no such file; {UNPACK}") from None
    except (OSError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"{file} must be a list with pixel_value, saturation_threshold and relative_saturation of each kind of "
            f"defect, but got {reason}; restore the official file"
        ) from None


def _positive(threshold: float) -> float:
    if not 0 < float(threshold) < float("inf"):
        raise ValueError(f"saturation_threshold must be a positive number, but got {threshold}")
    return float(threshold)
