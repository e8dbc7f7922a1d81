"""Image files to RGB and masks, with Pillow; whatever is wrong with a file becomes one line that names it."""

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from semflow.errors import ConfigError, DataError

__all__ = ["decode_image", "decode_mask", "load_image", "load_mask", "oriented_size", "resize_image", "resize_mask"]

_ORIENTATION = 0x0112  # the EXIF tag; values from 5 on exchange width and height
_ALPHA_GROUND = 128
_LOSSY = frozenset({"JPEG", "MPO", "WEBP"})
_WIDE = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})


def decode_image(path: str | PathLike[str]) -> Image.Image:
    """Read an image file as 8-bit RGB, upright.

    EXIF orientation is applied. 16-bit grey is scaled by its whole range (65535 becomes 255), never by the image's own
    maximum, so that brightness stays comparable between images; float grey must lie in [0, 1]. Transparent pixels are
    composited over mid-grey: the colours stored under full transparency are arbitrary, and neither a black nor a
    white drawing vanishes into grey. Of an animation or a stack of pages, the first image is read.

    Raises:
        DataError: there is no such file, it is no image, it is truncated, or its values have no known range.
    """
    with _opened(path) as image:
        upright = _upright(image)
        return _to_rgb(upright, Path(path), _ALPHA_GROUND)


def decode_mask(path: str | PathLike[str]) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Read a mask file as a bool array (H, W), true where anomalous.

    Every pixel that is not black counts, so that masks of 0/1, of 0/255 and of class numbers all read alike; in a
    lossy format (JPEG, WebP), whose black is not exact, the brighter half counts.
    """
    with _opened(path) as image:
        threshold = 127 if image.format in _LOSSY else 0
        upright = _upright(image)
        if upright.mode in _WIDE or upright.mode == "F":  # a label of 1 of 65535 must not round to 0
            values = np.asarray(upright)
        else:
            values = np.asarray(_to_rgb(upright, Path(path), 0)).max(axis=2)
        mask: np.ndarray[tuple[int, int], np.dtype[np.bool_]] = values > threshold
        return mask


def oriented_size(path: str | PathLike[str]) -> tuple[int, int]:
    """Width and height of an image file after its EXIF orientation, from the header alone.

    Raises:
        DataError: there is no such file, or it is no image.
    """
    with _opened(path) as image:
        width, height = image.size
        # Asking a PNG without EXIF data for them would decode the whole file.
        turned = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) >= 5
        return (height, width) if turned else (width, height)


def load_image(path: str | PathLike[str], size: int) -> Tensor:
    """Read an image file as a float32 tensor (3, size, size) in [0, 1], resized bilinearly with antialiasing."""
    return torch.from_numpy(resize_image(decode_image(path), size)).float().div_(255.0)


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
    """
    mask = decode_mask(path)
    if image_size is not None and (mask.shape[1], mask.shape[0]) != tuple(image_size):
        raise DataError(mask_size_message(path, (mask.shape[1], mask.shape[0]), image_size))
    return torch.from_numpy(resize_mask(mask, size))


def mask_size_message(path: str | PathLike[str], size: tuple[int, int], image_size: tuple[int, int]) -> str:
    """The line for a mask whose size differs from its image's."""
    return (
        f"{path}: expected a mask of its image's size, {image_size[0]} x {image_size[1]} pixels, "
        f"but it has {size[0]} x {size[1]}; make the mask again from the image as it is."
    )


def resize_image(image: Image.Image, size: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """An RGB image as a uint8 array (3, size, size); bilinear with antialiasing, the aspect ratio not kept."""
    _check_size(size)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def resize_mask(
    mask: np.ndarray[tuple[int, int], np.dtype[np.bool_]], size: int
) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """A bool array as (size, size), by nearest neighbour."""
    _check_size(size)
    if mask.shape == (size, size):
        return mask
    resized = Image.fromarray(mask.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(resized).astype(np.bool_)


def _check_size(size: int) -> None:
    if size < 1:
        raise ConfigError(f"image_size: expected a side of at least 1 pixel, but got {size}.")


@contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[Image.Image]:
    """Open an image and turn whatever goes wrong while it is read into a DataError."""
    try:
        with Image.open(path) as image:
            yield image
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: expected an image file, but there is none; check the path.") from None
    except IsADirectoryError:
        raise DataError(f"{path}: expected an image file, but it is a folder; name a file in it.") from None
    except PermissionError:
        raise DataError(f"{path}: expected a readable image file, but permission was denied.") from None
    except Exception as error:  # Pillow's plugins raise whatever their parsers stumble on
        if Path(path).is_file() and Path(path).stat().st_size == 0:
            raise DataError(f"{path}: expected an image, but the file is empty; replace or delete it.") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = reason.replace(f" {str(path)!r}", "")  # Pillow names the file once more
        raise DataError(
            f"{path}: expected a whole image that Pillow reads, but: {reason}; replace or delete it."
        ) from None


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    return ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image, path: Path, ground: int) -> Image.Image:
    if image.mode in _WIDE:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                f"{path}: expected grey values of 0 to 65535, but they run from {values.min()} to {values.max()}, "
                "a range semflow cannot know; save it as 8-bit or 16-bit grey."
            )
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        floats = np.asarray(image)
        if not (np.isfinite(floats).all() and floats.min() >= 0.0 and floats.max() <= 1.0):
            raise DataError(
                f"{path}: expected float grey values in [0, 1], but they run from {floats.min():g} to "
                f"{floats.max():g}; rescale them, or save it as 8-bit or 16-bit grey."
            )
        return Image.fromarray(np.rint(floats * 255.0).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        below = Image.new("RGBA", layer.size, (ground, ground, ground, 255))
        return Image.alpha_composite(below, layer).convert("RGB")
    return image.convert("RGB")
