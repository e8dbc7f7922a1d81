"""Colors of anomaly values: the same color for the same value in every picture."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from semflow.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor

# Dark blue, violet, red, orange, pale yellow. Lightness (CIE L*) rises from 9 to 89 in nearly equal steps, so that
# equal steps of the value look equal, also in grayscale and with impaired color vision.
HEAT_ANCHORS: NDArray[np.float64] = np.array(
    [[18, 20, 66], [72, 23, 121], [139, 29, 114], [202, 50, 76], [239, 102, 40], [250, 164, 46], [251, 222, 125]], float
)


def to_array(values: "Tensor | NDArray[np.generic]") -> NDArray[np.float32]:
    """Convert an array, or a tensor of any device, to a float32 array."""
    if not isinstance(values, np.ndarray) and hasattr(values, "detach"):
        values = values.detach().to("cpu").float().numpy()
    return np.asarray(values, dtype=np.float32)


def normalize(values: NDArray[np.float32], value_range: tuple[float, float]) -> NDArray[np.float32]:
    """Map `value_range` linearly onto [0, 1] and clip values outside it."""
    low, high = map(float, value_range)
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ConfigError(f"value_range must be two increasing finite numbers, but got ({low:g}, {high:g})")
    if values.size and np.isnan(values.min()):
        raise ShapeError("anomaly_map must contain numbers, but got NaN; check that the training finished")
    scaled = np.subtract(values, low, dtype=np.float64)
    scaled /= high - low
    return np.clip(scaled, 0.0, 1.0, out=scaled).astype(np.float32)


def to_levels(values: NDArray[np.float32], value_range: tuple[float, float]) -> NDArray[np.uint8]:
    """Map `value_range` linearly onto the 256 colors of `PALETTE` and clip values outside it."""
    levels = normalize(values, value_range)
    levels *= 255
    return np.rint(levels, out=levels).astype(np.uint8)


def heat_colors(levels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Interpolate colors (..., 3) for levels (...) in [0, 1].

    Example:
        >>> heat_colors(np.array([0.0, 1.0], dtype=np.float32)).tolist()
        [[18, 20, 66], [251, 222, 125]]
    """
    positions = np.linspace(0.0, 1.0, len(HEAT_ANCHORS))
    channels = [np.interp(levels, positions, HEAT_ANCHORS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


PALETTE = heat_colors(np.linspace(0.0, 1.0, 256, dtype=np.float32))
