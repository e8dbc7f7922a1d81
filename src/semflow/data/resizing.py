"""Images and masks brought to the size of a model, stretched or padded."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semflow._validation import Size, height_and_width
from semflow.errors import ConfigError

Resize = Literal["stretch", "pad"]
"""Resizing of images whose aspect ratio differs from the target: stretch them, or pad them."""

PADDING = 128  # mid-gray, as under transparent pixels
_LARGEST_SIDE = 2**14


class Box(NamedTuple):
    """Rectangle of pixels.

    Example:
        >>> Box(0, 8, 16, 32).width
        32
    """

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def placement(picture: tuple[int, int], size: Size, resize: Resize = "stretch") -> Box:
    """Return where a picture of (width, height) lies in an image of a size: everywhere, or in the middle if padded.

    Example:
        >>> placement((400, 200), 64), placement((400, 200), 64, "pad")
        (Box(top=0, left=0, height=64, width=64), Box(top=16, left=0, height=32, width=64))
    """
    height, width = height_and_width(size)
    if resize == "stretch":
        return Box(0, 0, height, width)
    scale = min(height / picture[1], width / picture[0])
    inner = [max(1, min(whole, round(scale * side))) for whole, side in ((height, picture[1]), (width, picture[0]))]
    return Box((height - inner[0]) // 2, (width - inner[1]) // 2, *inner)


def check_image_size(**sizes: Size) -> None:
    """Raise ConfigError for the first image size, given by name, with a side that is not positive or too large."""
    for name, size in sizes.items():
        if not all(1 <= side <= _LARGEST_SIDE for side in height_and_width(size)):
            raise ConfigError(f"{name} must be between 1 and {_LARGEST_SIDE} pixels, but got {size}")


def resize_image(image: Image.Image, size: Size, resize: Resize = "stretch") -> NDArray[np.uint8]:
    """Resize a gray or RGB image to a uint8 array (1 or 3, H, W), if padded with a region, as `load_image` does."""
    box = placement(image.size, size, resize)
    if image.size != (box.width, box.height):
        image = image.resize((box.width, box.height), Image.Resampling.BILINEAR)
    pixels = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
    if resize == "stretch":
        return pixels.copy()
    padded = np.full((len(pixels) + 1, *height_and_width(size)), PADDING, np.uint8)
    padded[-1] = 0
    padded[:-1, *box.slices], padded[-1, *box.slices] = pixels, 255
    return padded


def resize_mask(mask: NDArray[np.bool_], size: Size, resize: Resize = "stretch") -> NDArray[np.bool_]:
    """Resize a mask (H, W) to a bool array of a size by nearest neighbor; padding is false."""
    box = placement((mask.shape[1], mask.shape[0]), size, resize)
    if mask.shape != (box.height, box.width):
        scaled = Image.fromarray(mask.view(np.uint8)).resize((box.width, box.height), Image.Resampling.NEAREST)
        mask = np.asarray(scaled).astype(np.bool_)
    if resize == "stretch":
        return mask
    padded = np.zeros(height_and_width(size), np.bool_)
    padded[box.slices] = mask
    return padded
