"""Every pixel format that Pillow reads, as 8-bit RGB."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semflow.errors import DataError

__all__ = ["WIDE_MODES", "to_rgb"]

WIDE_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
"""Modes with more than 8 bits a pixel, which Pillow's own conversion would clip at 255."""


def to_rgb(image: Image.Image, name: str, ground: int = 128) -> Image.Image:
    """Convert to RGB without clipping or wrapping anything.

    16-bit grey is scaled by its whole range (65535 becomes 255), never by the image's own maximum, so that brightness
    stays comparable between images; float grey must lie in [0, 1]. Transparent pixels are composited over mid-grey: the
    colours stored under full transparency are arbitrary, and neither a black nor a white drawing vanishes into grey.

    Args:
        image: an image of any mode.
        name: what an error calls it.
        ground: the grey level under transparent pixels.

    >>> to_rgb(Image.fromarray(np.uint16([[0, 257, 65535]])), "ramp").getpixel((2, 0))
    (255, 255, 255)

    Raises:
        DataError: grey values outside the ranges above.
    """
    if image.mode == "F":
        return _from_grey(np.asarray(image).astype(np.float64), 1.0, name, "float grey values in [0, 1]")
    if image.mode in WIDE_MODES:
        return _from_grey(np.asarray(image).astype(np.float64), 65535.0, name, "grey values of 0 to 65535")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        below = Image.new("RGBA", layer.size, (ground, ground, ground, 255))
        return Image.alpha_composite(below, layer).convert("RGB")
    return image.convert("RGB")


def _from_grey(values: NDArray[np.float64], largest: float, name: str, expected: str) -> Image.Image:
    low, high = values.min(), values.max()
    if not (low >= 0.0 and high <= largest):  # false for NaN too
        raise DataError(
            f"{name}: expected {expected}, but they run from {low:g} to {high:g}, a range that semflow cannot know; "
            "rescale them, or save 8-bit or 16-bit grey."
        )
    return Image.fromarray(np.rint(values * (255.0 / largest)).astype(np.uint8)).convert("RGB")
