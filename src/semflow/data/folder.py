"""Data sets of image files: the common base, and the plain folder."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from semflow.data.decoding import decode_image, decode_mask, mask_size_message, resize_image, resize_mask
from semflow.data.samples import Sample
from semflow.errors import ConfigError, DataError

__all__ = ["EXTENSIONS", "ImageDataset", "ImageFolder", "Record", "list_images"]

EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".pbm", ".jp2"}
)


class Record(NamedTuple):
    """One image file of a data set: where it is, its label (0, 1 or -1), and its mask file if it has one."""

    path: Path
    label: int
    mask: Path | None = None


class ImageDataset(Dataset[Sample]):
    """Image files with labels and perhaps masks, all resized to one square size.

    With `has_masks` every sample has an anomaly mask: of its mask file, or all false when the record has none. Without,
    every sample's mask is None, so that whether pixels are labelled never depends on the batch.

    Args:
        records: the files, in the order of the data set.
        image_size: side of the images in pixels.
        has_masks: whether the pixels are labelled.
        cache: keep decoded images in memory as uint8 (196 kB each at 256 px). DataLoader workers share what was cached
            before they started (`verify()` caches everything), and keep later ones for themselves.
    """

    def __init__(
        self, records: Sequence[Record], image_size: int = 256, *, has_masks: bool = False, cache: bool = False
    ) -> None:
        if image_size < 1:
            raise ConfigError(f"image_size: expected a side of at least 1 pixel, but got {image_size}.")
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
        return Sample(image, record.label, None if mask is None else torch.from_numpy(mask.copy()), str(record.path))

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{self.labels.count(label)} {name}"
            for label, name in ((0, "normal"), (1, "anomalous"), (-1, "unlabelled"))
            if label in self.labels
        )
        return f"{type(self).__name__}({counts}, image_size={self.image_size}, masks={self.has_masks})"

    def verify(self) -> None:
        """Decode every file once, and so fill the cache if there is one.

        Raises:
            DataError: naming the first file that is broken.
        """
        for index in range(len(self)):
            self._decode(index)

    def _decode(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        if index in self._decoded:
            return self._decoded[index]
        record = self.records[index]
        image = decode_image(record.path)
        mask: NDArray[np.bool_] | None = None
        if self.has_masks:
            mask = np.zeros((self.image_size, self.image_size), dtype=np.bool_)
            if record.mask is not None:
                full = decode_mask(record.mask)
                if (full.shape[1], full.shape[0]) != image.size:
                    raise DataError(mask_size_message(record.mask, (full.shape[1], full.shape[0]), image.size))
                mask = resize_mask(full, self.image_size)
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

    Raises:
        DataError: there is no such folder, or no image in it.
    """

    def __init__(
        self, root: str | PathLike[str], image_size: int = 256, *, label: int = -1, cache: bool = False
    ) -> None:
        if label not in (-1, 0, 1):
            raise ConfigError(f"ImageFolder: expected label to be -1, 0 or 1, but got {label}.")
        paths = list_images(root)
        super().__init__([Record(path, label) for path in paths], image_size, has_masks=label == 0, cache=cache)
        self.root = Path(root)


def list_images(root: str | PathLike[str], *, recursive: bool = True) -> list[Path]:
    """The image files under a folder, by extension (in any case), sorted by posix relative path; hidden ones skipped.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    folder = Path(root)
    if not folder.exists():
        raise DataError(f"{folder}: expected a folder of images, but there is none; check the path.")
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of images, but it is a file; name the folder that holds it.")
    found = find_images(folder, recursive=recursive)
    if not found:
        raise DataError(
            f"{folder}: expected a folder with images ({', '.join(sorted(EXTENSIONS))}), but it holds none; "
            "check the path."
        )
    return found


def find_images(folder: Path, *, recursive: bool = True) -> list[Path]:
    """As `list_images`, but an empty list when there is none."""
    found = []
    for path in folder.rglob("*") if recursive else folder.iterdir():
        relative = path.relative_to(folder)
        if path.suffix.lower() in EXTENSIONS and path.is_file() and not any(p.startswith(".") for p in relative.parts):
            found.append((relative.as_posix(), path))
    return [path for _, path in sorted(found)]
