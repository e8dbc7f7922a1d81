"""Shapes of synthetic anomalies as depth maps.

A depth map is the distance in pixels from the center of each pixel to the nearest edge of the shape, positive inside
and negative outside. `depth > 0` is the hard mask; a soft border is a ramp over the depth (`soft_alpha`). One formula
gives mask, rotation and border together, without a blur filter.
"""

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["circle", "local_grid", "rectangle"]

Array = NDArray[np.float32]


def local_grid(rows: int, columns: int, angle: float = 0.0) -> tuple[Array, Array]:
    """Return the coordinates (y, x) of a box's pixel centers in a frame rotated about its center.

    `angle` is in degrees, clockwise on the screen. Both arrays broadcast to (rows, columns).
    """
    y = (np.arange(rows, dtype=np.float32) - np.float32((rows - 1) / 2))[:, None]
    x = (np.arange(columns, dtype=np.float32) - np.float32((columns - 1) / 2))[None, :]
    if angle == 0.0:
        return y, x
    cos, sin = np.float32(math.cos(math.radians(angle))), np.float32(math.sin(math.radians(angle)))
    return cos * y - sin * x, sin * y + cos * x


def rectangle(
    height: float, width: float, angle: float = 0.0, limit: tuple[int, int] = (2**30, 2**30)
) -> tuple[Array, Array, Array]:
    """Compute the depth map of a rotated rectangle in its bounding box, with coordinates in the frame of the rectangle.

    The depth of a pixel is its distance in pixels from the nearest edge, positive inside and negative outside.

    Args:
        height: Height in pixels, before the rotation.
        width: Width in pixels, before the rotation.
        angle: Rotation in degrees, clockwise on the screen.
        limit: Largest (rows, columns) of the bounding box; a larger box is cropped about its center.

    Returns:
        (depth, y, x), three arrays that broadcast to the (rows, columns) of the box.

    Example:
        >>> depth, _, _ = rectangle(2, 3)
        >>> (depth > 0).astype(int).tolist()
        [[1, 1, 1], [1, 1, 1]]
    """
    cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    # The slack keeps rounding from enlarging an unrotated box by a pixel.
    rows = min(limit[0], math.ceil(height * cos + width * sin - 1e-6))
    columns = min(limit[1], math.ceil(height * sin + width * cos - 1e-6))
    y, x = local_grid(rows, columns, angle)
    return np.minimum(np.float32(height / 2) - np.abs(y), np.float32(width / 2) - np.abs(x)), y, x


def circle(radius: float, angle: float = 0.0, limit: tuple[int, int] = (2**30, 2**30)) -> tuple[Array, Array, Array]:
    """Compute the depth map of a disk in its bounding box, with coordinates in a rotated frame.

    Args:
        radius: Radius in pixels.
        angle: Rotation of the frame, and so of pasted content, in degrees, clockwise on the screen.
        limit: Largest (rows, columns) of the bounding box; a larger box is cropped about its center.

    Returns:
        (depth, y, x), three arrays that broadcast to the (rows, columns) of the box.

    Example:
        >>> depth, _, _ = circle(2)
        >>> (depth > 0).astype(int).tolist()
        [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]
    """
    side = math.ceil(2 * radius - 1e-6)
    y, x = local_grid(min(limit[0], side), min(limit[1], side), angle)
    return np.float32(radius) - np.sqrt(y * y + x * x), y, x
