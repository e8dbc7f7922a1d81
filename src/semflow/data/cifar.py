"""CIFAR-10 as a one-class dataset."""

import pickle
from collections.abc import Iterable
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semflow._validation import Size, checked
from semflow.errors import ConfigError, DataError

from .dataset import ImageDataset, Record
from .decoding import decode_image
from .files import ZipFiles, require_folder
from .layouts import UNPACK
from .resizing import Resize
from .walking import find_images

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Names of the classes, in the order of their labels."""

_FILES = {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]}


class CIFAR10(ImageDataset):
    """CIFAR-10 (Krizhevsky 2009) with one normal class and nine anomalous classes, without masks.

    "train" has the training images of the normal class; "test" has all test images, with label 0 for the normal class
    and 1 for the others. The usual result is the mean AUROC over ten runs, with each class as the normal one once.

    Args:
        root: cifar-10-batches-py or the folder that contains it; or a folder or a zip file with train/CLASS/* and
            test/CLASS/*. The batches are pickles, read without executing code from them. A zip file is read without
            unpacking it. The paths of packed images are `test_batch#17` and `cifar.zip#test/cat/0001.jpg`.
        split: "train" or "test".
        category: The normal class, one of `CIFAR10_CLASSES`.
        image_size, cache, resize: See `ImageDataset`; the original images have 32 x 32 pixels.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "train/cat").mkdir(parents=True)
        ...     Image.new("RGB", (32, 32)).save(Path(root, "train/cat/0.png"))
        ...     CIFAR10(root, image_size=32, category="cat")
        CIFAR10(1 normal, image_size=32, has_masks=False)
    """

    @checked
    def __init__(
        self,
        root: str | PathLike[str],
        split: Literal["train", "test"] = "train",
        image_size: Size = 256,
        *,
        category: str,
        cache: bool = False,
        resize: Resize = "stretch",
    ) -> None:
        if category not in CIFAR10_CLASSES:
            raise ConfigError(f"category must be one of {', '.join(CIFAR10_CLASSES)}, but got {category!r}")
        top = Path(root)
        self._pixels: NDArray[np.uint8] | None = None
        self._zip: ZipFiles | None = None
        if top.is_file() and top.suffix.lower() == ".zip":
            self._zip = ZipFiles(top)
            chosen = _by_class(top, split, category, self._zip.images())
            records = [Record(Path(f"{top}#{name}"), label) for name, label in chosen]
            self._members = [name for name, _ in chosen]
        elif batches := _batches_folder(require_folder(top, "the folder of CIFAR-10")):
            records, self._pixels = _from_batches(batches, split, category)
        else:
            require_folder(top / split, f"a folder {split}/CLASS, unless {top} contains cifar-10-batches-py")
            names = [path.relative_to(top).as_posix() for path in find_images(top / split)]
            records = [Record(top / name, label) for name, label in _by_class(top, split, category, names)]
        super().__init__(records, image_size, cache=cache, root=top, resize=resize)

    def read_image(self, index: int) -> Image.Image:
        """Decode an image from its batch, zip file or image file."""
        if self._pixels is not None:
            return Image.fromarray(np.ascontiguousarray(self._pixels[index].transpose(1, 2, 0)))
        if self._zip is not None:
            with self._zip.opened(self._members[index]) as member:
                return decode_image(self.records[index].path, member)
        return super().read_image(index)


def is_cifar10(path: Path) -> bool:
    """Return True for the batches of CIFAR-10, a folder of its classes, or any zip file."""
    if path.is_file():
        return path.suffix.lower() == ".zip"
    has_classes = any(all((path / s / c).is_dir() for c in CIFAR10_CLASSES) for s in ("train", "test"))
    return has_classes or _batches_folder(path) is not None


def _batches_folder(folder: Path) -> Path | None:
    candidates = (folder, folder / "cifar-10-batches-py")
    names = [name for files in _FILES.values() for name in files]
    return next((c for c in candidates if any((c / name).is_file() for name in names)), None)


def _from_batches(folder: Path, split: str, category: str) -> tuple[list[Record], NDArray[np.uint8]]:
    normal = CIFAR10_CLASSES.index(category)
    records, pixels = [], []
    for name in _FILES[split]:
        images, classes = read_batch(folder / name)
        kept = np.flatnonzero(classes == normal) if split == "train" else np.arange(len(classes))
        records += [Record(folder / f"{name}#{k}", int(classes[k] != normal)) for k in kept]
        pixels.append(images[kept])
    found = {record.label for record in records}
    if 0 not in found or (split == "test" and 1 not in found):
        raise DataError(
            f"{folder} must contain {split} images of {category}{' and other classes' * (split == 'test')}, but got "
            "none; unpack cifar-10-python.tar.gz again"
        )
    return records, np.concatenate(pixels)


def _by_class(root: Path, split: str, category: str, names: Iterable[str]) -> list[tuple[str, int]]:
    """Return the names SPLIT/CLASS/FILE of a split with their labels, sorted; they may have a common parent folder."""
    chosen, found = [], set()
    for name in sorted(names):
        parts = PurePosixPath(name).parts
        if len(parts) < 3 or parts[-3] != split:
            continue
        if parts[-2] not in CIFAR10_CLASSES:
            raise DataError(f"{root} must contain only classes of CIFAR-10 in {split}/, but got {parts[-2]}/; move it")
        found.add(parts[-2])
        if split == "test" or parts[-2] == category:
            chosen.append((name, int(parts[-2] != category)))
    missing = sorted(set(CIFAR10_CLASSES if split == "test" else (category,)) - found)
    if missing:
        raise DataError(f"{root} must contain images in {split}/CLASS, but got none of {', '.join(missing)}; {UNPACK}")
    return chosen


def read_batch(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the images (N, 3, 32, 32) and labels (N,), 0 to 9, of a batch, without executing code from the pickle."""
    try:
        with file.open("rb") as opened:
            batch = _BatchUnpickler(file, opened).load()
    except FileNotFoundError:
        raise DataError(
            f"{file} must be a batch of CIFAR-10, but got no such file; unpack cifar-10-python.tar.gz completely"
        ) from None
    except DataError:
        raise
    except Exception as error:  # a broken pickle raises errors of any class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{file} must be a batch of CIFAR-10, but got the error {reason!r}; unpack it again") from None
    content: Any = batch if isinstance(batch, dict) else {}
    data, labels = content.get(b"data"), content.get(b"labels")
    are_images = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape[1:] == (3 * 32 * 32,)
    if not are_images or not isinstance(labels, list) or not all(type(k) is int and 0 <= k < 10 for k in labels):
        raise DataError(
            f"{file} must contain uint8 data (N, 3072) and labels from 0 to 9, but got other content; "
            "use the Python version of CIFAR-10"
        )
    if len(data) != len(labels):
        raise DataError(f"{file} must have one label per image, but got {len(labels)} for {len(data)}; unpack it again")
    return data.reshape(-1, 3, 32, 32), np.asarray(labels, dtype=np.int64)


class _BatchUnpickler(pickle.Unpickler):
    """Unpickler of arrays, bytes, lists and dicts that calls only functions of this module."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        super().__init__(file, encoding="bytes")  # Python 2 wrote the batches

    def find_class(self, module: str, name: str) -> object:
        # The lambdas are new at each use: a pickle can set attributes of functions and must not affect later reads.
        match module, name:
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct"):
                # An empty array; the pickle then sets dtype, shape and bytes, which NumPy checks.
                return lambda subtype, shape, dtype: np.ndarray((0,), np.uint8)
            case "numpy", "ndarray":
                return np.ndarray
            case "numpy", "dtype":
                return np.dtype
            case "_codecs", "encode":
                return lambda text, encoding: text.encode("latin1")  # Python 3 writes bytes so for old protocols
        raise DataError(f"{self.path} must contain only arrays and lists, but got {module}.{name}; delete the file")
