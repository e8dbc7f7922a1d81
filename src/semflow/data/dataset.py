"""Datasets of image files: the common base class and the plain folder."""

import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from semflow._channels import split_region
from semflow._validation import Size, checked, height_and_width, plain_size
from semflow.errors import ConfigError

from .decoding import Doubt, decode_doubting
from .files import list_images
from .masks import check_mask_size, decode_mask
from .regions import read_region
from .resizing import Resize, check_image_size, resize_image, resize_mask
from .samples import Sample
from .walking import PassedOver


class Record(NamedTuple):
    """One image of a dataset: its path, its label (0 normal, 1 anomalous, -1 unknown) and its mask file, if any.

    The path of an image packed in a file is the file's path, `#` and the position in it: `01_001.avi#12`.

    Example:
        >>> Record(Path("test/good/000.png"), 0).mask is None
        True
    """

    path: Path
    label: int
    mask: Path | None = None


class ImageDataset(Dataset[Sample]):
    """Image files with labels and optional masks, all resized to one size or at their own.

    If `has_masks` is True, every sample has an anomaly mask, which is all false for a normal image without a mask file.
    Otherwise every mask is None. Files are decoded on access. Subclasses for data other than image files
    override `read_image` and `read_mask`.

    Args:
        records: The images, in the order of the dataset.
        image_size: Side of the images in pixels, or (height, width); None keeps their own size.
        has_masks: True if the pixels are labeled.
        cache: Keep decoded images in memory as uint8 (196 kB each at 256 px, a third if gray). DataLoader workers share
            the images cached before they started (`verify()` caches all); an image that a worker decodes stays in it.
        root: Folder of the images; names in results are relative to it.
        passed_over: Files and folders beside the images that are not in the dataset.
        resize: `stretch` or `pad`, see `load_image`. Padded images, and those with a region, have it as their last
            channel, see `Sample`.

    Raises:
        ConfigError: If `image_size` is out of range, or `has_masks` is True and the mask of an anomalous or
            unlabeled image is missing.

    Example:
        >>> ImageDataset([Record(Path("a.png"), 0), Record(Path("b.png"), 1)], image_size=16)
        ImageDataset(1 normal, 1 anomalous, image_size=16, has_masks=False)
    """

    @checked
    def __init__(
        self,
        records: Sequence[Record],
        image_size: Size | None = 256,
        *,
        has_masks: bool = False,
        cache: bool = False,
        root: str | PathLike[str] | None = None,
        passed_over: Sequence[PassedOver] = (),
        resize: Resize = "stretch",
    ) -> None:
        if image_size is not None:
            check_image_size(image_size=image_size)
        for record in records:
            if has_masks and record.mask is None and record.label != 0:
                raise ConfigError(
                    f"{record.path} must have a mask if has_masks is True and its label is {record.label}, "
                    "but got None; pass its mask or has_masks=False"
                )
        self.records, self.resize = tuple(records), resize
        self.image_size = None if image_size is None else plain_size(image_size)
        self.has_masks, self.cache = has_masks, cache
        self.root = None if root is None else Path(root)
        self.passed_over = tuple(passed_over)
        self.regions: dict[Path, Path] = {}  # the mask of the region of interest of each image; see `open_dataset`
        self._told: set[str] = set()
        # NumPy arrays, because sending many tensors to spawned workers exhausts the file descriptors.
        self._decoded: dict[int, tuple[NDArray[np.uint8], NDArray[np.bool_] | None]] = {}

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the images, in order."""
        return tuple(str(record.path) for record in self.records)

    @property
    def labels(self) -> tuple[int, ...]:
        """Labels, in order: 0 normal, 1 anomalous, -1 unknown."""
        return tuple(record.label for record in self.records)

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width of color images; gray ones have two channels less. None for images of any size."""
        if self.image_size is None:
            return None
        return (4 if self.regions or self.resize == "pad" else 3, *height_and_width(self.image_size))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be below {len(self)}, but got {index}")
        record = self.records[index]
        pixels, mask = self._decode(index % len(self))
        image = torch.from_numpy(pixels).float().div_(255.0)
        anomaly_mask = None if mask is None else torch.from_numpy(mask.copy())
        return Sample(image, record.label, anomaly_mask, str(record.path))

    def __repr__(self) -> str:
        names = {0: "normal", 1: "anomalous", -1: "unlabeled"}
        counts = ", ".join(f"{self.labels.count(label)} {names[label]}" for label in names if label in self.labels)
        return f"{type(self).__name__}({counts}, image_size={self.image_size}, has_masks={self.has_masks})"

    def set_regions(self, regions: dict[Path, Path]) -> None:
        """Set the mask of the region of interest of each image, by its path."""
        self.regions = regions

    def verify(self) -> None:
        """Decode every file once and fill the cache, if enabled; raise DataError for the first broken file."""
        for index in range(len(self)):
            self._decode(index)

    def read_image(self, index: int) -> Image.Image:
        """Decode the image at `index` (from 0) to gray or RGB; warn once about each kind of doubtful pixels."""
        image, doubts = decode_doubting(self.records[index].path)
        self._tell(doubts)
        return image

    def read_mask(self, index: int, image_size: tuple[int, int]) -> NDArray[np.bool_]:
        """Decode the mask at `index` and resize it to the size of the dataset; `image_size` is (width, height)."""
        mask = self.records[index].mask
        if mask is None:
            return np.zeros(height_and_width(self.size_of(image_size)), dtype=np.bool_)
        decoded = decode_mask(mask)
        check_mask_size(mask, (decoded.shape[1], decoded.shape[0]), image_size)
        if self.records[index].label == 1 and not decoded.any():
            warnings.warn(
                f"{mask} is empty although {self.records[index].path} is anomalous, so all of its pixels count as "
                "normal; check the mask",
                stacklevel=1,
            )
        return resize_mask(decoded, self.size_of(image_size), self.resize)

    def size_of(self, picture: tuple[int, int]) -> Size:
        """Return the size in the data set of a picture of (width, height)."""
        return (picture[1], picture[0]) if self.image_size is None else self.image_size

    def to_pixels(self, index: int, image: Image.Image) -> NDArray[np.uint8]:
        """Resize the image at `index`, from `read_image`, to a uint8 array (C, H, W), see `Sample`."""
        size = self.size_of(image.size)
        pixels = resize_image(image, size, self.resize)
        if (file := self.regions.get(self.records[index].path)) is None:
            return pixels
        region = read_region(file, image.size, size, self.resize)
        return np.concatenate([split_region(pixels)[0], np.where(region, 255, 0).astype(np.uint8)[None]])

    def _tell(self, doubts: Sequence[Doubt]) -> None:
        for kind, text in doubts:
            if kind not in self._told:
                self._told.add(kind)
                warnings.warn(f"{text}; other images like it are not named", stacklevel=1)

    def _decode(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        if index in self._decoded:
            return self._decoded[index]
        image = self.read_image(index)
        mask = self.read_mask(index, image.size) if self.has_masks else None
        decoded = self.to_pixels(index, image), mask
        if self.cache:
            self._decoded[index] = decoded
        return decoded


class ImageFolder(ImageDataset):
    """Images in a folder and its subfolders, sorted by relative path, with one label.

    Args:
        root: The folder; links to folders are followed. `passed_over` lists what is left out.
        label: 0 if all images are normal (their masks are then all false), 1 if all are anomalous, -1 if unknown.
        image_size, cache, resize: See `ImageDataset`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Image.new("RGB", (20, 10), (255, 0, 0)).save(Path(root) / "red.png")
        ...     ImageFolder(root, image_size=4)[0].image[:, 0, 0]
        tensor([1., 0., 0.])
    """

    @checked
    def __init__(
        self,
        root: str | PathLike[str],
        image_size: Size | None = 256,
        *,
        label: int = -1,
        cache: bool = False,
        resize: Resize = "stretch",
    ) -> None:
        if label not in (-1, 0, 1):
            raise ConfigError(f"label must be -1, 0 or 1, but got {label}")
        found = list_images(root)
        records = [Record(path, label) for path in found.images]
        super().__init__(
            records, image_size, has_masks=label == 0, cache=cache, root=root, passed_over=found.passed_over,
            resize=resize,
        )  # fmt: skip
