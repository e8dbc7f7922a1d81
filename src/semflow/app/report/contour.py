"""The outline of a mask over a picture."""

__all__ = ["contour"]

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semflow.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor

COLOR = (0, 229, 255)  # no heat colour and no part's: it is seen over both


def contour(
    picture: Image.Image, mask: "Tensor | NDArray[np.bool_]", color: tuple[int, int, int] = COLOR
) -> Image.Image:
    """A copy of the picture with the outline of a mask, two pixels wide: the mask's own border and the one around it.

    Args:
        picture: RGB.
        mask: (H, W) bool, stretched to the picture.
        color: of the line.

    >>> mask = np.zeros((4, 4), dtype=bool)
    >>> mask[1:3, 1:3] = True
    >>> drawn = np.asarray(contour(Image.new("RGB", (8, 8)), mask))[..., 2] > 0
    >>> int(drawn.sum()), bool(drawn[0, 0]), bool(drawn[2, 2])
    (28, False, True)
    """
    inside = np.asarray(mask)
    if inside.ndim != 2 or inside.dtype != np.bool_ or 0 in inside.shape:
        raise ShapeError(f"mask must be (H, W) bool, but got {inside.shape} of {inside.dtype}")
    larger = picture.width >= inside.shape[1] and picture.height >= inside.shape[0]
    # Where the picture is the smaller one, a pixel is inside if any part of it is: no mask is lost.
    method = Image.Resampling.NEAREST if larger else Image.Resampling.BOX
    stretched = np.asarray(Image.fromarray(inside.astype(np.float32)).resize(picture.size, method)) > 0
    framed = np.pad(stretched, 1, mode="edge")
    neighbours = np.stack([framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:]])
    line = (stretched | neighbours.any(0)) & ~(stretched & neighbours.all(0))
    pixels = np.array(picture.convert("RGB"))
    pixels[line] = color
    return Image.fromarray(pixels)
