"""Parts of a synthetic anomaly: the shape of a patch, its soft border, its colors, and blending into an image.

The shape is a depth map: the distance in pixels from the center of each pixel to the nearest edge, positive inside and
negative outside. `depth > 0` is the hard mask; a soft border is a ramp over the depth (`soft_alpha`). One formula gives
mask, rotation and border together, without a blur filter.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semflow.errors import ShapeError

Array = NDArray[np.float32]

REFERENCE_SIZE = 256
"""Shorter side in pixels of the images to which sizes in pixels refer."""

ALPHA_FLOOR = 0.1
"""Smaller values of alpha become 0: the pixel is neither changed nor marked as anomalous."""

_LUMA = np.array([0.299, 0.587, 0.114])


def check_images(image: Tensor, donor: Tensor) -> None:
    """Raise ShapeError unless image and donor are float32 tensors (3, H, W) of one size on the CPU."""
    for name, value in (("image", image), ("donor", donor)):
        if value.ndim != 3 or value.shape[0] != 3 or value.dtype != torch.float32 or value.device.type != "cpu":
            raise ShapeError(
                f"{name} must be a float32 tensor (3, H, W) on the CPU, "
                f"but got {value.dtype} {tuple(value.shape)} on {value.device}"
            )
    if image.shape != donor.shape:
        raise ShapeError(
            f"image and donor must have one size, but got {tuple(image.shape)} and {tuple(donor.shape)}; "
            "load all images at one size"
        )


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
    """Compute the depth map of a rotated rectangle in its bounding box, and coordinates in the frame of the rectangle.

    The results (depth, y, x) broadcast to the (rows, columns) of the box.

    Args:
        height: Height in pixels, before the rotation.
        width: Width in pixels, before the rotation.
        angle: Rotation in degrees, clockwise on the screen.
        limit: Largest (rows, columns) of the bounding box; a larger box is cropped about its center.

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

    Arguments and results are those of `rectangle`; the angle rotates only the frame, and so pasted content.

    Example:
        >>> depth, _, _ = circle(2)
        >>> (depth > 0).astype(int).tolist()
        [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]
    """
    side = math.ceil(2 * radius - 1e-6)
    y, x = local_grid(min(limit[0], side), min(limit[1], side), angle)
    return np.float32(radius) - np.sqrt(y * y + x * x), y, x


def soft_alpha(depth: Array, border: float) -> Array:
    """Compute the opacity of a patch: 1 inside, falling smoothly to 0 over the outermost `border` pixels, 0 outside.

    alpha = 3 t^2 - 2 t^3 with t = depth / border clamped to [0, 1]: the profile of an edge blurred with a kernel of
    that width, but inside the shape. The border is at most a quarter of the shape's thickness, so that a thin scar
    still reaches full opacity; values below `ALPHA_FLOOR` become 0. At least one pixel is always opaque.

    Args:
        depth: Depth map of the shape in pixels, see `rectangle`.
        border: Width of the border in pixels.

    Example:
        >>> soft_alpha(np.float32([-0.5, 0.5, 1.5, 2.5]), border=2.0).round(2).tolist()
        [0.0, 0.34999..., 1.0, 1.0]
    """
    deepest = float(depth.max())
    width = np.float32(max(min(border, deepest / 2), 1e-30))  # the depth may be a rounding error
    t = np.clip(depth / width, 0.0, 1.0)
    alpha: Array = (t * t * (np.float32(3.0) - np.float32(2.0) * t)).astype(np.float32, copy=False)
    alpha[alpha < ALPHA_FLOOR] = 0.0
    if deepest <= 0.0:  # the shape is so small that it contains no pixel center
        alpha.flat[int(depth.argmax())] = 1.0
    return alpha


def blend(image: Tensor, patch: Array, alpha: Array, top: int, left: int) -> tuple[Tensor, Tensor]:
    """Paste `patch` into a copy of `image`, x + alpha (patch - x), and return it with the mask (H, W) of alpha > 0.

    Args:
        image: (3, H, W), float32 in [0, 1]; not changed.
        patch: (3, h, w) in [0, 1].
        alpha: (h, w) in [0, 1].
        top: Row of the image for the first row of the patch.
        left: Column of the image for the first column of the patch.

    Example:
        >>> patch, alpha = np.ones((3, 2, 2), np.float32), np.ones((2, 2), np.float32)
        >>> image, mask = blend(torch.zeros(3, 8, 8), patch, alpha, top=1, left=2)
        >>> image.sum().item(), mask.sum().item(), mask[1, 2].item()
        (12.0, 4, True)
    """
    rows, columns = alpha.shape
    out = image.clone()
    # NumPy, because its rounding does not depend on the number of threads, unlike torch's vectorized kernels.
    # The result stays in [0, 1] if both inputs do, including rounding.
    window = out.numpy()[:, top : top + rows, left : left + columns]
    window += alpha * (patch - window)
    anomaly_mask = torch.zeros(image.shape[1:], dtype=torch.bool)
    anomaly_mask[top : top + rows, left : left + columns] = torch.from_numpy(alpha > 0.0)
    return out, anomaly_mask


def jitter_colors(patch: Array, brightness: float, contrast: float, saturation: float, hue: float) -> Array:
    """Change brightness, contrast, saturation and hue of a patch, in this order, and clamp to [0, 1].

    All four are affine in RGB, so they are one 3x3 matrix and one offset: brightness scales by 1 + b, contrast scales
    by 1 + c about the patch's mean luma, saturation scales the distance from the luma by 1 + s, and hue rotates the
    color about the gray axis by `hue` of a full turn. Gray pixels stay gray.

    Example:
        >>> gray = np.full((3, 2, 2), 0.5, dtype=np.float32)
        >>> jitter_colors(gray, 0.1, 0.0, 0.1, 0.1).round(4).max().item()
        0.55...
    """
    # Elementwise NumPy without matrix products or torch reductions: the result must not depend on the thread count.
    if brightness == contrast == saturation == hue == 0.0:
        return patch
    mean = patch.mean(axis=(1, 2), dtype=np.float64)
    gain = (1.0 + brightness) * (1.0 + contrast)
    offset = -contrast * (1.0 + brightness) * float((_LUMA * mean).sum())
    chroma = (1.0 + saturation) * np.eye(3) - saturation * np.outer(np.ones(3), _LUMA)
    matrix = (gain * (_hue_rotation(hue) @ chroma)).astype(np.float32)
    out = np.empty(patch.shape, dtype=np.float32)
    for channel, row in enumerate(matrix):
        out[channel] = row[0] * patch[0] + row[1] * patch[1] + row[2] * patch[2] + np.float32(offset)
    return np.clip(out, 0.0, 1.0, out=out)


def _hue_rotation(turns: float) -> NDArray[np.float64]:
    """Return the rotation of RGB about (1, 1, 1) by Rodrigues' formula."""
    angle = 2.0 * math.pi * turns
    axis = 1.0 / math.sqrt(3.0)
    cross = axis * np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    rotation: NDArray[np.float64] = (
        math.cos(angle) * np.eye(3) + math.sin(angle) * cross + (1.0 - math.cos(angle)) * np.full((3, 3), 1.0 / 3.0)
    )
    return rotation
