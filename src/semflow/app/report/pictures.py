"""Pictures of anomaly maps: alone, over their image, and with the outline of a mask."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semflow._channels import CHANNELS, in_color, split_region
from semflow.errors import ConfigError, ShapeError

from .colors import PALETTE, heat_colors, normalize, to_array, to_levels

if TYPE_CHECKING:
    from torch import Tensor

    Values = Tensor | NDArray[np.generic]

CONTOUR_COLOR = (0, 229, 255)  # unlike any heat color and most parts


def to_picture(image: "Values") -> Image.Image:
    """Convert an image (C, H, W) in [0, 1], see `semflow.data.Sample`, to an RGB picture without its region.

    Example:
        >>> to_picture(np.ones((3, 2, 4), dtype=np.float32)).size
        (4, 2)
    """
    return Image.fromarray(_pixels(image).round().astype(np.uint8))


def heat_map(anomaly_map: "Values", value_range: tuple[float, float]) -> Image.Image:
    """Draw an anomaly map (H, W), from dark blue at the low end of `value_range` to pale yellow at the high end.

    Example:
        >>> heat_map([[0.0, 1.0]], value_range=(0.0, 1.0)).size
        (2, 1)
    """
    return Image.fromarray(heat_colors(normalize(_map(anomaly_map), value_range)))


def overlay(
    image: "Values", anomaly_map: "Values", value_range: tuple[float, float], opacity: float = 0.75
) -> Image.Image:
    """Draw the heat map over its image, as an RGB picture of the same size.

    The color covers more of the image where the value is higher: nothing up to the low end of `value_range`, where the
    pixels are those of the image, and the share `opacity` from the high end on.

    Args:
        image: (C, H, W) in [0, 1], see `semflow.data.Sample`.
        anomaly_map: (H, W), higher is more anomalous.
        value_range: Values of the first and the last color. Take it from normal images (`Detector.map_range`), not from
            the image shown: a map scaled by its own range shows a defect in every image.
        opacity: Of the last color, in [0, 1].

    Example:
        >>> values = np.array([[0.0, 1.0], [0.0, 0.0]])
        >>> picture = overlay(np.zeros((3, 2, 2), np.float32), values, (0.0, 1.0), opacity=1.0)
        >>> picture.getpixel((0, 0)), picture.getpixel((1, 0))
        ((0, 0, 0), (251, 222, 125))
    """
    picture, levels = to_picture(image), to_levels(_map(anomaly_map), value_range)
    if (picture.height, picture.width) != levels.shape:
        raise ShapeError(f"anomaly_map must be {(picture.height, picture.width)} as the image, but got {levels.shape}")
    return cover(picture, levels, opacity)


def cover(picture: Image.Image, levels: NDArray[np.uint8], opacity: float = 0.75) -> Image.Image:
    """Draw levels (H, W) of the heat map, from 0 to 255, over an RGB picture of the same size; see `overlay`.

    Example:
        >>> cover(Image.new("RGB", (2, 1)), np.array([[0, 255]], np.uint8), opacity=1.0).getpixel((1, 0))
        (251, 222, 125)
    """
    if not 0.0 <= opacity <= 1.0:
        raise ConfigError(f"opacity must be in [0, 1], but got {opacity:g}")
    heat, values = Image.fromarray(levels), np.linspace(0.0, 1.0, 256)
    # Smoothstep keeps slightly unusual regions faint and makes defects stand out.
    share = 255.0 * opacity * (values * values * (3.0 - 2.0 * values))
    mask = heat.point(np.rint(share).astype(int).tolist())
    heat.putpalette(PALETTE.tobytes())
    return Image.composite(heat.convert("RGB"), picture, mask)


def contour(
    picture: Image.Image, mask: "Tensor | NDArray[np.bool_]", color: tuple[int, int, int] = CONTOUR_COLOR
) -> Image.Image:
    """Draw the outline of a mask (H, W), two pixels wide and resized to the picture, on a copy of a picture.

    Example:
        >>> mask = np.pad(np.ones((2, 2), dtype=bool), 1)
        >>> drawn = np.asarray(contour(Image.new("RGB", (8, 8)), mask))[..., 2] > 0
        >>> int(drawn.sum()), bool(drawn[0, 0]), bool(drawn[2, 2])
        (28, False, True)
    """
    inside = np.asarray(mask)
    if inside.ndim != 2 or inside.dtype != np.bool_ or 0 in inside.shape:
        raise ShapeError(f"mask must be (H, W) bool, but got {inside.shape} of {inside.dtype}")
    larger = picture.width >= inside.shape[1] and picture.height >= inside.shape[0]
    # In a smaller picture, a pixel is inside if any part of it is, so that small masks remain visible.
    method = Image.Resampling.NEAREST if larger else Image.Resampling.BOX
    resized = np.asarray(Image.fromarray(inside.astype(np.float32)).resize(picture.size, method)) > 0
    padded = np.pad(resized, 1, mode="edge")
    up, down, left, right = padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
    line = (resized | up | down | left | right) & ~(resized & up & down & left & right)
    drawn = picture.convert("RGB")
    drawn.paste(color, mask=Image.fromarray(line))
    return drawn


def _pixels(image: "Values") -> NDArray[np.float32]:
    array = to_array(image)
    if array.ndim != 3 or array.shape[0] not in CHANNELS or 0 in array.shape:
        raise ShapeError(f"image must be (C, H, W) with 1 to 4 channels, but got {array.shape}")
    colors, _ = split_region(in_color(array))
    scaled: NDArray[np.float32] = np.clip(colors.transpose(1, 2, 0), 0.0, 1.0) * np.float32(255.0)
    return scaled


def _map(anomaly_map: "Values") -> NDArray[np.float32]:
    array = to_array(anomaly_map)
    if array.ndim != 2 or 0 in array.shape:
        raise ShapeError(f"anomaly_map must be (H, W), but got {array.shape}")
    return array
