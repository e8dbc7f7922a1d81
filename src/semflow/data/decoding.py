"""Image files to RGB and masks, with Pillow; whatever is wrong with a file becomes one line that names it."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from semflow._validation import checked
from semflow.errors import ConfigError, DataError

from .modes import WIDE_MODES, to_rgb

__all__ = [
    "check_mask_size",
    "decode_image",
    "decode_mask",
    "load_image",
    "load_mask",
    "oriented_size",
    "resize_image",
    "resize_mask",
]

_ORIENTATION = 0x0112  # the EXIF tag; values from 5 on exchange width and height
_LOSSY = frozenset({"JPEG", "MPO", "WEBP"})
# Those of `semflow.data.files.EXTENSIONS`, whatever a file is called: Pillow reads others by running programs.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
_LARGEST_SIDE = 2**14


@checked
def decode_image(path: str | PathLike[str], file: IO[bytes] | None = None) -> Image.Image:
    """Read an image file as 8-bit RGB, upright (EXIF orientation applied); see `semflow.data.modes.to_rgb`.

    Of an animation or a stack of pages, the first image is read.

    Args:
        path: the file, or what an error calls `file`.
        file: an open binary file to read instead, such as a member of an archive.

    Raises:
        DataError: there is no such file, it is no image, it is truncated, or its values have no known range.

    Example:
        >>> import io
        >>> held = io.BytesIO()
        >>> Image.new("L", (4, 3), 128).save(held, "PNG")
        >>> decode_image("in memory", held).getpixel((0, 0))
        (128, 128, 128)
    """
    with _opened(path, file) as image:
        return to_rgb(_upright(image), fspath(path))


def decode_mask(path: str | PathLike[str]) -> NDArray[np.bool_]:
    """Read a mask file as a bool array (H, W), true where anomalous.

    Every pixel that is not black (or transparent) counts, so that masks of 0/1, of 0/255 and of class numbers read
    alike; in a lossy format (JPEG, WebP), whose black is not exact, the brighter half counts. Of an image with a
    palette the colours count, or the numbers of the classes where the palette is black all over.
    """
    with _opened(path) as image:
        threshold = 127 if image.format in _LOSSY else 0
        upright = _upright(image)
        # 1 of 65535 is a label too and must not round to black, so wide formats are not converted.
        wide = upright.mode in WIDE_MODES
        values = np.asarray(upright) if wide else np.asarray(to_rgb(upright, fspath(path), 0)).max(axis=2)
        if upright.mode == "P" and not any(upright.getpalette() or ()):
            values = np.asarray(upright)
        mask: NDArray[np.bool_] = values > threshold
        return mask


def oriented_size(path: str | PathLike[str]) -> tuple[int, int]:
    """Width and height of an image file after its EXIF orientation, from the header alone.

    Raises:
        DataError: there is no such file, or it is no image.
    """
    with _opened(path) as image:
        width, height = image.size
        # Asking a PNG without EXIF data for them would decode the whole file; a TIFF's size is upright already.
        turned = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        return (height, width) if turned else (width, height)


@checked
def load_image(path: str | PathLike[str], size: int) -> Tensor:
    """Read an image file as a float32 tensor (3, size, size) in [0, 1].

    Resized bilinearly with antialiasing, the aspect ratio not kept, as the field does.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (40, 30), "blue").save(f"{folder}/a.png")
        ...     load_image(f"{folder}/a.png", 16)[:, 0, 0]
        tensor([0., 0., 1.])
    """
    return torch.from_numpy(resize_image(decode_image(path), size)).float().div_(255.0)


@checked
def load_mask(path: str | PathLike[str], size: int, image_size: tuple[int, int] | None = None) -> Tensor:
    """Read a mask file as a bool tensor (size, size), true where anomalous, resized by nearest neighbour.

    Nearest is the field's custom, and published pixel metrics depend on it: keeping every anomalous pixel while
    shrinking would grow the regions. A defect thinner than the reduction can therefore lose pixels.

    Args:
        path: the mask file.
        size: side of the result.
        image_size: (width, height) of the image that the mask belongs to; None leaves it unchecked.

    Raises:
        DataError: the file is broken, or of another size than its image.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (40, 30), 255).save(f"{folder}/a_mask.png")
        ...     load_mask(f"{folder}/a_mask.png", 16, image_size=(40, 30)).all()
        tensor(True)
    """
    _check_side(size)
    mask = decode_mask(path)
    if image_size is not None:
        check_mask_size(path, (mask.shape[1], mask.shape[0]), image_size)
    return torch.from_numpy(resize_mask(mask, size))


def check_mask_size(path: str | PathLike[str], size: tuple[int, int], image_size: tuple[int, int]) -> None:
    """Raise DataError unless a mask has the (width, height) of its image."""
    if size != image_size:
        raise DataError(
            f"{fspath(path)}: expected a mask of its image's size, {image_size[0]} x {image_size[1]} pixels, "
            f"but it has {size[0]} x {size[1]}; make the mask again from the image as it is."
        )


def resize_image(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """An RGB image as a uint8 array (3, size, size), as `load_image` does it."""
    _check_side(size)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1).copy()


def resize_mask(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """A mask (H, W) as a bool array (size, size), as `load_mask` does it."""
    _check_side(size)
    if mask.shape == (size, size):
        return mask
    resized = Image.fromarray(mask.view(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    result: NDArray[np.bool_] = np.asarray(resized) > 0
    return result


def _check_side(size: int) -> None:
    if size < 1:
        raise ConfigError(f"image_size: expected a side of at least 1 pixel, but got {size}.")
    if size > _LARGEST_SIDE:
        raise ConfigError(f"image_size: expected a side of at most {_LARGEST_SIDE} pixels, but got {size}.")


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data in an image whose pixels are whole: there is no orientation to apply
        return image


@contextmanager
def _opened(path: str | PathLike[str], file: IO[bytes] | None = None) -> Iterator[Image.Image]:
    """Open an image and turn whatever goes wrong while it is read into a DataError."""
    name = fspath(path)
    try:
        if file is None:
            _refuse_special(Path(path))
        with Image.open(path if file is None else file, formats=_FORMATS) as image:
            yield image
    except DataError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever their parsers stumble on
        raise DataError(f"{name}: {_what_is_wrong(Path(path), error)}") from None


def _refuse_special(path: Path) -> None:
    """Raise DataError for what is there but no file: reading from a pipe would wait, perhaps for ever."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(f"{path}: expected an image file, but it is a pipe, a socket or a device; move it away.")


def _what_is_wrong(path: Path, error: Exception) -> str:
    match error:
        case FileNotFoundError() if path.is_symlink():
            return "expected an image file, but it is a link to a file that is not there; mend or delete it."
        case FileNotFoundError():
            return "expected an image file, but there is none; check the path."
        case IsADirectoryError():
            return "expected an image file, but it is a folder; name a file in it."
        case PermissionError():
            return "expected a readable image file, but permission was denied; change its permissions."
        case Image.DecompressionBombError():
            return f"expected at most {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels, but it has more; cut it into tiles."
        case OSError(strerror=str(reason)):  # the system's: a loop of links, a name too long, a disk that fails
            return f"expected a readable image file, but: {reason}; mend, replace or delete it."
    if os.path.exists(path) and path.stat().st_size == 0:  # noqa: PTH110 - of a name too long it says False
        return "expected an image, but the file is empty; replace or delete it."
    # Pillow's own words, without the file's name, which is said already.
    reason = " ".join(str(error).split()).replace(f" {str(path)!r}", "") or type(error).__name__
    return f"expected a whole image ({' '.join(_FORMATS)}), but: {reason}; replace or delete it."
