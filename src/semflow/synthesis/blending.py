"""Soft pasting: opacity from a depth map, and alpha blending into a copy of an image."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["ALPHA_FLOOR", "blend", "soft_alpha"]

ALPHA_FLOOR = 0.1
"""Smaller values of alpha become 0: the pixel is neither changed nor marked as anomalous."""


def soft_alpha(depth: NDArray[np.float32], border: float) -> NDArray[np.float32]:
    """Compute the opacity of a patch: 1 inside, falling smoothly to 0 over the outermost `border` pixels, 0 outside.

    alpha = 3 t^2 - 2 t^3 with t = depth / border clamped to [0, 1]: the profile of an edge blurred with a kernel of
    that width, but inside the shape. The border is at most a quarter of the shape's thickness, so that a thin scar
    still reaches full opacity; values below `ALPHA_FLOOR` become 0. At least one pixel is always opaque.

    Args:
        depth: Depth map of the shape in pixels, see `rectangle`.
        border: Width of the border in pixels.

    Returns:
        Opacities in [0, 1], of the shape of `depth`.

    Example:
        >>> soft_alpha(np.float32([-0.5, 0.5, 1.5, 2.5]), border=2.0).round(2).tolist()
        [0.0, 0.34999..., 1.0, 1.0]
    """
    deepest = float(depth.max())
    width = np.float32(max(min(border, deepest / 2), 1e-30))  # the depth may be a rounding error
    t = np.clip(depth / width, 0.0, 1.0)
    alpha: NDArray[np.float32] = (t * t * (np.float32(3.0) - np.float32(2.0) * t)).astype(np.float32, copy=False)
    alpha[alpha < ALPHA_FLOOR] = 0.0
    if deepest <= 0.0:  # the shape is so small that it contains no pixel center
        alpha.flat[int(depth.argmax())] = 1.0
    return alpha


def blend(
    image: Tensor, patch: NDArray[np.float32], alpha: NDArray[np.float32], top: int, left: int
) -> tuple[Tensor, Tensor]:
    """Paste `patch` into a copy of `image`: x + alpha (patch - x).

    Args:
        image: (3, H, W), float32 in [0, 1]; not changed.
        patch: (3, h, w) in [0, 1].
        alpha: (h, w) in [0, 1].
        top: Row of the image for the first row of the patch.
        left: Column of the image for the first column of the patch.

    Returns:
        (image, anomaly_mask): (3, H, W), and (H, W) bool, true where alpha > 0. The image is unchanged elsewhere.

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
