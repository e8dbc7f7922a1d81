"""Image files decoded to RGB and masks with Pillow; every problem with a file is a DataError of one line."""

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

_WIDE_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})  # Pillow's conversion would clip them at 255
_ORIENTATION = 0x0112  # the EXIF tag; values from 5 on exchange width and height
_LOSSY = frozenset({"JPEG", "MPO", "WEBP"})
# The formats of `semflow.data.files.EXTENSIONS`, whatever the suffix: Pillow reads others by running programs.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
_LARGEST_SIDE = 2**14


@checked
def decode_image(path: str | PathLike[str], file: IO[bytes] | None = None) -> Image.Image:
    """Decode an image file to 8-bit RGB, upright (EXIF orientation applied).

    16-bit grayscale is scaled by its full range (65535 becomes 255), never by the image's own maximum, so that
    brightness stays comparable between images; float grayscale must lie in [0, 1]. Transparent pixels are composited
    over mid-gray, because the colors stored under full transparency are arbitrary. Of an animation or a multi-page
    file, the first image is read.

    Args:
        path: The file, or the name of `file` in errors.
        file: An open binary file to read instead, such as a member of an archive.

    Raises:
        DataError: If the file does not exist, is not an image, is truncated, or has values outside the ranges above.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.new("L", (4, 3), 128).save(file, "PNG")
        >>> decode_image("in memory", file).getpixel((0, 0))
        (128, 128, 128)
    """
    with _opened(path, file) as image:
        return _to_rgb(_upright(image), fspath(path))


def decode_mask(path: str | PathLike[str]) -> NDArray[np.bool_]:
    """Decode a mask file to a bool array (H, W), true where anomalous.

    Every pixel that is not black or transparent is anomalous, so masks of 0/1, of 0/255 and of class indices give the
    same result. In a lossy format (JPEG, WebP), black is not exact, so values above 127 are anomalous. In an image
    with a palette the colors count, or the indices if the whole palette is black.
    """
    with _opened(path) as image:
        threshold = 127 if image.format in _LOSSY else 0
        upright = _upright(image)
        wide = upright.mode in _WIDE_MODES  # not converted: 1 of 65535 is a label too and must not round to black
        values = np.asarray(upright) if wide else np.asarray(_to_rgb(upright, fspath(path), background=0)).max(axis=2)
        if upright.mode == "P" and not any(upright.getpalette() or ()):
            values = np.asarray(upright)
        return np.asarray(values > threshold)


def oriented_size(path: str | PathLike[str]) -> tuple[int, int]:
    """Return the width and height of an image file after EXIF orientation, from its header alone."""
    with _opened(path) as image:
        width, height = image.size
        # Reading the EXIF data of a PNG without any would decode the whole file; a TIFF's size is upright already.
        turned = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        return (height, width) if turned else (width, height)


@checked
def load_image(path: str | PathLike[str], size: int) -> Tensor:
    """Load an image file as a float32 tensor (3, size, size) in [0, 1].

    The image is resized bilinearly with antialiasing; its aspect ratio is not kept. Decoding is that of `decode_image`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (40, 30), "blue").save(f"{folder}/a.png")
        ...     load_image(f"{folder}/a.png", 16)[:, 0, 0]
        tensor([0., 0., 1.])
    """
    check_image_size(size=size)
    return torch.from_numpy(resize_image(decode_image(path), size)).float().div_(255.0)


@checked
def load_mask(path: str | PathLike[str], size: int, image_size: tuple[int, int] | None = None) -> Tensor:
    """Load a mask file as a bool tensor (size, size), true where anomalous, resized by nearest neighbor.

    Published pixel metrics depend on nearest-neighbor resizing: keeping every anomalous pixel while shrinking would
    enlarge the regions. The mask must have the `image_size` (width, height) of its image, unless that is None.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (40, 30), 255).save(f"{folder}/a_mask.png")
        ...     load_mask(f"{folder}/a_mask.png", 16, image_size=(40, 30)).all()
        tensor(True)
    """
    check_image_size(size=size)
    mask = decode_mask(path)
    if image_size is not None:
        check_mask_size(path, (mask.shape[1], mask.shape[0]), image_size)
    return torch.from_numpy(resize_mask(mask, size))


def check_image_size(**sizes: int) -> None:
    """Raise ConfigError for the first image side, given by name, that is not positive or too large."""
    for name, size in sizes.items():
        if not 1 <= size <= _LARGEST_SIDE:
            raise ConfigError(f"{name} must be between 1 and {_LARGEST_SIDE} pixels, but got {size}")


def check_mask_size(path: str | PathLike[str], size: tuple[int, int], image_size: tuple[int, int]) -> None:
    """Raise DataError if the (width, height) of a mask differs from that of its image."""
    if size != image_size:
        raise DataError(
            f"{fspath(path)} must have the size of its image, {image_size[0]} x {image_size[1]} pixels, "
            f"but got {size[0]} x {size[1]}; create the mask again from the original image"
        )


def resize_image(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Resize an RGB image to a uint8 array (3, size, size), as `load_image` does."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1).copy()


def resize_mask(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Resize a mask (H, W) to a bool array (size, size), as `load_mask` does."""
    if mask.shape == (size, size):
        return mask
    resized = Image.fromarray(mask.view(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(resized).astype(np.bool_)


def _to_rgb(image: Image.Image, name: str, background: int = 128) -> Image.Image:
    """Convert an image of any mode to RGB without clipping; `background` is the gray under transparent pixels."""
    if image.mode == "F":
        return _gray_to_rgb(image, 1.0, name, "float grayscale values in [0, 1]")
    if image.mode in _WIDE_MODES:
        return _gray_to_rgb(image, 65535.0, name, "grayscale values between 0 and 65535")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        below = Image.new("RGBA", layer.size, (background, background, background, 255))
        return Image.alpha_composite(below, layer).convert("RGB")
    return image.convert("RGB")


def _gray_to_rgb(image: Image.Image, largest: float, name: str, expected: str) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    if not (low >= 0.0 and high <= largest):  # also catches NaN
        raise DataError(
            f"{name} must have {expected}, but got values from {low:g} to {high:g}; "
            "rescale them or save the image as 8-bit or 16-bit grayscale"
        )
    return Image.fromarray(np.rint(values * (255.0 / largest)).astype(np.uint8)).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the EXIF data are broken, but the pixels are intact
        return image


@contextmanager
def _opened(path: str | PathLike[str], file: IO[bytes] | None = None) -> Iterator[Image.Image]:
    """Open an image and convert every error during reading to a DataError."""
    try:
        if file is None:
            mode = Path(path).stat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # reading from a pipe could wait forever
                raise DataError(f"{path} must be an image file, but got a pipe, a socket or a device; move it")
        with Image.open(path if file is None else file, formats=_FORMATS) as image:
            yield image
    except DataError:
        raise
    except Exception as error:  # Pillow's plugins raise errors of any class
        expected, found, advice = _diagnosis(Path(path), error)
        raise DataError(f"{fspath(path)} must {expected}, but got {found}; {advice}") from None


def _diagnosis(path: Path, error: Exception) -> tuple[str, str, str]:
    """Return what was expected, what was found, and what to do."""
    match error:
        case FileNotFoundError() if path.is_symlink():
            return "be an image file", "a broken link", "repair or delete it"
        case FileNotFoundError():
            return "be an image file", "no such file", "check the path"
        case IsADirectoryError():
            return "be an image file", "a folder", "name a file in it"
        case PermissionError():
            return "be a readable image file", "no permission to read it", "change its permissions"
        case Image.DecompressionBombError():
            return f"have at most {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels", "more", "cut it into tiles"
        case OSError(strerror=str(reason)):  # from the system: a loop of links, a name too long, a failing disk
            return "be a readable image file", f"the error {reason!r}", "repair, replace or delete it"
    if os.path.exists(path) and path.stat().st_size == 0:  # noqa: PTH110 - returns False for a name too long
        return "be an image file", "an empty file", "replace or delete it"
    # Pillow's message without the file name, which the error starts with.
    reason = " ".join(str(error).split()).replace(f" {str(path)!r}", "") or type(error).__name__
    return f"be an intact image ({' '.join(_FORMATS)})", f"the error {reason!r}", "replace or delete it"
