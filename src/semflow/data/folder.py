"""Data sets of image files: the common base, and the plain folder."""

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

from semflow._validation import checked
from semflow.errors import ConfigError

from .decoding import check_mask_size, decode_image, decode_mask, resize_image, resize_mask
from .files import list_images
from .samples import Sample

__all__ = ["ImageDataset", "ImageFolder", "Record"]


class Record(NamedTuple):
    """One image of a data set: where it is, its label (0, 1 or -1), and its mask file if it has one.

    Of images that lie packed in a file, `path` is the file's, then `#` and what is within: `01_001.avi#12`.

    Example:
        >>> Record(Path("test/good/000.png"), 0).mask is None
        True
    """

    path: Path
    label: int
    mask: Path | None = None


class ImageDataset(Dataset[Sample]):
    """Image files with labels and perhaps masks, all resized to one square size.

    With `has_masks` every sample has an anomaly mask: its mask file's, or all false for a normal image without one.
    Otherwise every sample's mask is None, so that whether pixels are labelled never differs between batches.
    Nothing is decoded before it is asked for. Data that are no image files override `read_image` and `read_mask`.

    Args:
        records: the files, in the order of the data set.
        image_size: side of the images in pixels.
        has_masks: whether the pixels are labelled.
        cache: keep decoded images in memory as uint8 (196 kB each at 256 px). DataLoader workers share what was cached
            before they started (`verify()` caches everything); what a worker decodes stays with that worker.

    Raises:
        ConfigError: an image size below 1, or masks promised for an image that has none.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (40, 30), "red").save(f"{folder}/a.png")
        ...     dataset = ImageDataset([Record(Path(folder) / "a.png", 0)], image_size=16)
        ...     dataset[0].image.shape, dataset[0].image[:, 0, 0].tolist(), len(dataset)
        (torch.Size([3, 16, 16]), [1.0, 0.0, 0.0], 1)
    """

    @checked
    def __init__(
        self, records: Sequence[Record], image_size: int = 256, *, has_masks: bool = False, cache: bool = False
    ) -> None:
        if image_size < 1:
            raise ConfigError(f"image_size: expected a side of at least 1 pixel, but got {image_size}.")
        for record in records:
            if has_masks and record.mask is None and record.label != 0:
                raise ConfigError(
                    f"{record.path}: expected a mask of an image with label {record.label} where has_masks is True, "
                    "but got None; give its mask, or has_masks=False."
                )
        self.records = tuple(records)
        self.image_size = image_size
        self.has_masks = has_masks
        self.cache = cache
        # numpy, not torch: handing many tensors to spawned workers runs out of file descriptors.
        self._decoded: dict[int, tuple[NDArray[np.uint8], NDArray[np.bool_] | None]] = {}

    @property
    def paths(self) -> tuple[str, ...]:
        """The image files, in order."""
        return tuple(str(record.path) for record in self.records)

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels, in order: 0 normal, 1 anomalous, -1 unknown."""
        return tuple(record.label for record in self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{type(self).__name__}: index {index} of {len(self)}.")
        record = self.records[index]
        pixels, mask = self._decode(index % len(self))
        image = torch.from_numpy(pixels).float().div_(255.0)
        anomaly_mask = None if mask is None else torch.from_numpy(mask.copy())
        return Sample(image, record.label, anomaly_mask, str(record.path))

    def __repr__(self) -> str:
        names = {0: "normal", 1: "anomalous", -1: "of unknown label"}
        counts = ", ".join(f"{self.labels.count(label)} {names[label]}" for label in names if label in self.labels)
        return f"{type(self).__name__}({counts}, image_size={self.image_size}, has_masks={self.has_masks})"

    def verify(self) -> None:
        """Decode every file once, and so fill the cache if there is one.

        Raises:
            DataError: naming the first file that is broken.
        """
        for index in range(len(self)):
            self._decode(index)

    def read_image(self, index: int) -> Image.Image:
        """Decode an image, at its own size and in RGB; `index` counts from 0."""
        return decode_image(self.records[index].path)

    def read_mask(self, index: int, image_size: tuple[int, int]) -> NDArray[np.bool_]:
        """Decode the mask (H, W) of an image of the given (width, height) and resize it to `self.image_size`."""
        mask = self.records[index].mask
        if mask is None:
            return np.zeros((self.image_size, self.image_size), dtype=np.bool_)
        decoded = decode_mask(mask)
        check_mask_size(mask, (decoded.shape[1], decoded.shape[0]), image_size)
        if self.records[index].label == 1 and not decoded.any():
            warnings.warn(
                f"{mask}: marks nothing, though {self.records[index].path} is anomalous: all of its pixels count as "
                "normal; look at the mask.",
                stacklevel=1,
            )
        return resize_mask(decoded, self.image_size)

    def _decode(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        if index in self._decoded:
            return self._decoded[index]
        image = self.read_image(index)
        mask = self.read_mask(index, image.size) if self.has_masks else None
        decoded = resize_image(image, self.image_size), mask
        if self.cache:
            self._decoded[index] = decoded
        return decoded


class ImageFolder(ImageDataset):
    """All images in a folder and its subfolders, in the order of their relative paths, with one label.

    Args:
        root: the folder; hidden files and folders in it are skipped.
        image_size: side of the images in pixels.
        label: -1 unknown (the default), or 0 if all are known to be normal; then the masks are all false.
        cache: see `ImageDataset`.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Image.new("RGB", (20, 10), (255, 0, 0)).save(Path(root) / "red.png")
    ...     sample = ImageFolder(root, image_size=4)[0]
    >>> sample.image.shape, sample.image.amax((1, 2)).tolist(), sample.label, sample.anomaly_mask
    (torch.Size([3, 4, 4]), [1.0, 0.0, 0.0], -1, None)

    Raises:
        DataError: there is no such folder, or no image in it.
    """

    @checked
    def __init__(
        self, root: str | PathLike[str], image_size: int = 256, *, label: int = -1, cache: bool = False
    ) -> None:
        if label not in (-1, 0, 1):
            raise ConfigError(f"ImageFolder: expected label to be -1, 0 or 1, but got {label}.")
        records = [Record(path, label) for path in list_images(root)]
        super().__init__(records, image_size, has_masks=label == 0, cache=cache)
        self.root = Path(root)
