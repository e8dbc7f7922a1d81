"""Shapes of synthetic anomalies, as the depth of each pixel inside the shape.

A shape is given as a *depth map*: an array whose value is the distance in pixels from the pixel's centre to the
nearest edge of the shape, positive inside, negative outside. `depth > 0` is the hard mask; a soft border is a ramp over
the depth (`semflow.synthesis.soft_alpha`). One formula thus gives mask, rotation and border together, without a blur
filter.
"""

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["circle", "local_grid", "rectangle", "scar"]

Array = NDArray[np.float32]


def local_grid(rows: int, columns: int, angle: float = 0.0) -> tuple[Array, Array]:
    """Coordinates of a box's pixel centres in a frame turned by `angle` degrees about the box's centre.

    Args:
        rows, columns: the box's size in pixels.
        angle: in degrees, from the column axis towards the row axis (clockwise on the screen).

    Returns:
        (y, x), each of a shape that broadcasts to (rows, columns).

    >>> y, x = local_grid(1, 3)
    >>> x.tolist()
    [[-1.0, 0.0, 1.0]]
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
    """Depth map of a rectangle in its bounding box, with the coordinates of its own frame.

    Args:
        height, width: the sides in pixels, before the rotation.
        angle: in degrees, clockwise on the screen.
        limit: (rows, columns) that the bounding box must not exceed; what is beyond is cut off, the centre stays.

    Returns:
        (depth, y, x), of shapes that broadcast to the box's (rows, columns).

    >>> depth, _, _ = rectangle(2, 3)
    >>> (depth > 0).astype(int).tolist()
    [[1, 1, 1], [1, 1, 1]]
    """
    cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    # The small slack keeps an unrotated box from growing by a pixel through rounding.
    rows = min(limit[0], math.ceil(height * cos + width * sin - 1e-6))
    columns = min(limit[1], math.ceil(height * sin + width * cos - 1e-6))
    y, x = local_grid(rows, columns, angle)
    return np.minimum(np.float32(height / 2) - np.abs(y), np.float32(width / 2) - np.abs(x)), y, x


def circle(radius: float, angle: float = 0.0, limit: tuple[int, int] = (2**30, 2**30)) -> tuple[Array, Array, Array]:
    """Depth map of a disc in its bounding box; `angle` turns only the frame (y, x), and so the pasted content.

    >>> depth, _, _ = circle(2)
    >>> (depth > 0).astype(int).tolist()
    [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]
    """
    side = math.ceil(2 * radius - 1e-6)
    y, x = local_grid(min(limit[0], side), min(limit[1], side), angle)
    return np.float32(radius) - np.sqrt(y * y + x * x), y, x


def scar(
    thickness: float, length: float, angle: float, limit: tuple[int, int] = (2**30, 2**30)
) -> tuple[Array, Array, Array]:
    """Depth map of a thin bar turned by `angle`: the scar of CutPaste (Li et al. 2021).

    >>> depth, _, _ = scar(2, 12, 45.0)
    >>> depth.shape
    (10, 10)
    """
    return rectangle(length, thickness, angle, limit)
