"""An anomaly map as a picture: alone, or laid over the image it belongs to."""

__all__ = ["heat_map", "overlay", "to_picture"]

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semflow.errors import ConfigError, ShapeError

from .colors import heat_colors, normalize, to_array

if TYPE_CHECKING:
    from torch import Tensor

    Values = Tensor | NDArray[np.generic]


def to_picture(image: "Values") -> Image.Image:
    """An image (3, H, W) in [0, 1] as an RGB picture.

    >>> to_picture(np.ones((3, 2, 4), dtype=np.float32)).size
    (4, 2)
    """
    return Image.fromarray(_pixels(image).round().astype(np.uint8))


def heat_map(anomaly_map: "Values", value_range: tuple[float, float]) -> Image.Image:
    """An anomaly map (H, W) as colours: dark where at or below the range, pale yellow where at or above it.

    Example:
        >>> heat_map([[0.0, 1.0]], value_range=(0.0, 1.0)).size
        (2, 1)
    """
    return Image.fromarray(heat_colors(normalize(_map(anomaly_map), value_range)))


def overlay(
    image: "Values", anomaly_map: "Values", value_range: tuple[float, float], opacity: float = 0.75
) -> Image.Image:
    """The image with the heat of its anomaly map on top.

    The colour covers the image the more, the higher the value: where the map is at the lower end of `value_range`
    the image is untouched, at the upper end it shows through with 1 - opacity.

    Args:
        image: (3, H, W), RGB in [0, 1], torch or numpy.
        anomaly_map: (H, W), higher is more anomalous.
        value_range: the values of the first and the last colour. Take it from normal images (`Detector.map_range`),
            not from the image shown: a map scaled by itself shows a defect in every image.
        opacity: of the last colour, in [0, 1].

    >>> picture = overlay(np.zeros((3, 2, 2), np.float32), np.array([[0.0, 1.0], [0.0, 0.0]]), (0.0, 1.0), opacity=1.0)
    >>> picture.getpixel((0, 0)), picture.getpixel((1, 0))
    ((0, 0, 0), (251, 222, 125))
    """
    if not 0.0 <= opacity <= 1.0:
        raise ConfigError(f"opacity is {opacity:g}, expected a number in [0, 1]")
    pixels = _pixels(image)
    levels = normalize(_map(anomaly_map), value_range)
    if pixels.shape[:2] != levels.shape:
        raise ShapeError(
            f"image of {pixels.shape[1]}x{pixels.shape[0]} and anomaly_map of {levels.shape[1]}x{levels.shape[0]} "
            "(width x height), expected the same size"
        )
    # Smoothstep: what is a little unusual stays a hint, and the defect stands out of it.
    cover = opacity * (levels * levels * (3.0 - 2.0 * levels))[..., None]
    return Image.fromarray(((1.0 - cover) * pixels + cover * heat_colors(levels)).round().astype(np.uint8))


def _pixels(image: "Values") -> NDArray[np.float32]:
    array = to_array(image)
    if array.ndim != 3 or array.shape[0] != 3 or 0 in array.shape:
        raise ShapeError(f"image has shape {array.shape}, expected (3, H, W)")
    return np.clip(array.transpose(1, 2, 0), 0.0, 1.0) * np.float32(255.0)


def _map(anomaly_map: "Values") -> NDArray[np.float32]:
    array = to_array(anomaly_map)
    if array.ndim != 2 or 0 in array.shape:
        raise ShapeError(f"anomaly_map has shape {array.shape}, expected (H, W)")
    return array
