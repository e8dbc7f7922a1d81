"""Color jitter of a small patch, as one affine map of RGB."""

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["jitter_colors"]

_LUMA = np.array([0.299, 0.587, 0.114])


def jitter_colors(
    patch: NDArray[np.float32], brightness: float, contrast: float, saturation: float, hue: float
) -> NDArray[np.float32]:
    """Change brightness, contrast, saturation and hue of a patch, in this order, and clamp to [0, 1].

    All four are affine in RGB, so they are one 3x3 matrix and one offset: brightness scales by 1 + b, contrast scales
    by 1 + c about the patch's mean luma, saturation scales the distance from the luma by 1 + s, and hue rotates the
    color about the gray axis by `hue` of a full turn. Gray pixels stay gray.

    Args:
        patch: (3, h, w) in [0, 1].
        brightness: Relative change b.
        contrast: Relative change c.
        saturation: Relative change s.
        hue: Fraction of a full turn.

    Returns:
        The changed patch (3, h, w).

    Example:
        >>> gray = np.full((3, 2, 2), 0.5, dtype=np.float32)
        >>> jitter_colors(gray, 0.1, 0.0, 0.1, 0.1).round(4).max().item()
        0.55...
    """
    # Elementwise NumPy without matrix products or torch reductions: the result must not depend on the thread count.
    mean = patch.mean(axis=(1, 2), dtype=np.float64)
    gain = (1.0 + brightness) * (1.0 + contrast)
    offset = -contrast * (1.0 + brightness) * float((_LUMA * mean).sum())
    chroma = (1.0 + saturation) * np.eye(3) - saturation * np.outer(np.ones(3), _LUMA)
    matrix = gain * (_hue_rotation(hue) @ chroma)
    if brightness == contrast == saturation == hue == 0.0:
        return patch
    m = matrix.astype(np.float32)
    out = np.empty(patch.shape, dtype=np.float32)
    for channel in range(3):
        row = m[channel]
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
