"""CIFAR-10 as a one-class data set."""

from collections.abc import Iterable
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semflow._validation import checked
from semflow.errors import ConfigError, DataError

from .cifar_batches import TEST_FILES, TRAIN_FILES, read_batch
from .decoding import decode_image
from .files import find_images
from .folder import ImageDataset, Record
from .places import check_split, require_folder
from .zips import ZipFiles

__all__ = ["CIFAR10", "CIFAR10_CLASSES", "is_cifar10"]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The classes, in the order of their labels."""


class CIFAR10(ImageDataset):
    """CIFAR-10 (Krizhevsky 2009) with one class for normal and the other nine for anomalous; no masks.

    "train" holds the training images of the normal class alone; "test" holds all test images, label 0 for the normal
    class and 1 for the others. The usual figure is the mean of ten AUROCs, each class being the normal one once.

    Args:
        root: cifar-10-batches-py or the folder that holds it; or a folder or a zip file with train/CLASS/* and
            test/CLASS/*. The batches are pickles: they are read without running anything that they may name. A zip
            file is read as it is. Of packed images, `paths` are `test_batch#17` and `cifar.zip#test/cat/0001.jpg`.
        split: "train" or "test".
        image_size: side of the images in pixels; the originals have 32.
        category: the normal class, one of `CIFAR10_CLASSES`.
        cache: see `ImageDataset`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in CIFAR10_CLASSES:
    ...         (Path(root) / "test" / name).mkdir(parents=True)
    ...         Image.new("RGB", (32, 32)).save(Path(root) / "test" / name / "0000.png")
    ...     CIFAR10(root, "test", image_size=32, category="cat")
    CIFAR10(1 normal, 9 anomalous, image_size=32, has_masks=False)

    Raises:
        ConfigError: there is no such class.
        DataError: a batch is missing, broken or no batch, or a class is missing.
    """

    @checked
    def __init__(
        self,
        root: str | PathLike[str],
        split: Literal["train", "test"] = "train",
        image_size: int = 256,
        *,
        category: str,
        cache: bool = False,
    ) -> None:
        check_split("CIFAR10", split)
        if category not in CIFAR10_CLASSES:
            raise ConfigError(
                f"CIFAR10: expected category to be one of {', '.join(CIFAR10_CLASSES)}, but got {category!r}."
            )
        top = Path(root)
        self._pixels: NDArray[np.uint8] | None = None
        self._zip: ZipFiles | None = None
        self._members: list[str] = []
        if top.is_file() and top.suffix.lower() == ".zip":
            self._zip = ZipFiles(top)
            chosen = _by_class(top, split, category, self._zip.images())
            self._members = [name for name, _ in chosen]
            records = [Record(Path(f"{top}#{name}"), label) for name, label in chosen]
        else:
            require_folder(top, "the folder of CIFAR-10")
            batches = next((path for path in (top, top / "cifar-10-batches-py") if _has_batches(path)), None)
            if batches is not None:
                records, self._pixels = _from_batches(batches, split, category)
            else:
                require_folder(top / split, f"cifar-10-batches-py or {split}/CLASS in {top}")
                names = [path.relative_to(top).as_posix() for path in find_images(top / split)]
                records = [Record(top / name, label) for name, label in _by_class(top, split, category, names)]
        super().__init__(records, image_size, cache=cache)
        self.root, self.split, self.category = top, split, category

    def read_image(self, index: int) -> Image.Image:
        """Decode an image, from wherever it lies."""
        if self._pixels is not None:
            return Image.fromarray(np.ascontiguousarray(self._pixels[index].transpose(1, 2, 0)))
        if self._zip is not None:
            with self._zip.opened(self._members[index]) as member:
                return decode_image(self.records[index].path, member)
        return super().read_image(index)


def is_cifar10(path: Path) -> bool:
    """Whether there is CIFAR-10 at a path: its batches, a folder of its classes, or a zip file, which may be one."""
    if path.is_file():
        return path.suffix.lower() == ".zip"
    batches = _has_batches(path) or _has_batches(path / "cifar-10-batches-py")
    return batches or any(all((path / s / c).is_dir() for c in CIFAR10_CLASSES) for s in ("train", "test"))


def _has_batches(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (*TRAIN_FILES, *TEST_FILES))


def _from_batches(folder: Path, split: str, category: str) -> tuple[list[Record], NDArray[np.uint8]]:
    normal = CIFAR10_CLASSES.index(category)
    records, pixels = [], []
    for name in TRAIN_FILES if split == "train" else TEST_FILES:
        images, classes = read_batch(folder / name)
        kept = np.flatnonzero(classes == normal) if split == "train" else np.arange(len(classes))
        records += [Record(folder / f"{name}#{k}", int(classes[k] != normal)) for k in kept]
        pixels.append(images[kept])
    found = {record.label for record in records}
    if 0 not in found or (split == "test" and 1 not in found):
        raise DataError(
            f"{folder}: expected images of {category}{' and others' * (split == 'test')} for {split}, but there are "
            "none; unpack cifar-10-python.tar.gz again."
        )
    return records, np.concatenate(pixels)


def _by_class(root: Path, split: str, category: str, names: Iterable[str]) -> list[tuple[str, int]]:
    """The names SPLIT/CLASS/FILE of a split with their labels, sorted; a folder may lie around all of them."""
    chosen = []
    found = set()
    for name in sorted(names):
        parts = PurePosixPath(name).parts
        if len(parts) < 3 or parts[-3] != split:
            continue
        if parts[-2] not in CIFAR10_CLASSES:
            raise DataError(
                f"{root}: expected the ten classes of CIFAR-10 in {split}/, but it holds {parts[-2]}/; move it."
            )
        found.add(parts[-2])
        if split == "test" or parts[-2] == category:
            chosen.append((name, int(parts[-2] != category)))
    missing = sorted(set(CIFAR10_CLASSES if split == "test" else (category,)) - found)
    if missing:
        raise DataError(
            f"{root}: expected images in {split}/CLASS, but {', '.join(missing)} has none; "
            "unpack the data set completely."
        )
    return chosen
