"""Files of anomaly maps: exact float32, or a 16-bit PNG that any image program opens."""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from semflow.errors import ConfigError, DataError, ShapeError
from semflow.files import write_atomic

from .colors import normalize, to_array

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = 65535


def save_map(
    path: str | Path, anomaly_map: "Tensor | NDArray[np.generic]", value_range: tuple[float, float] | None = None
) -> Path:
    """Write an anomaly map as `.npy` (float32, exact) or as `.png` (16 bits), and return the path.

    A PNG contains `round(65535 * (value - minimum) / (maximum - minimum))`, clipped. The minimum and the maximum are
    stored in its text entries and in `NAME.png.json` beside it.

    Args:
        path: File ending in `.npy` or `.png`.
        anomaly_map: (H, W).
        value_range: Minimum and maximum of a PNG; by default, those of the map in its region of interest.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_map(Path(folder) / "map.png", np.array([[0.0, 0.25], [0.5, 1.0]]))
        ...     load_map(path).round(3).tolist()
        [[0.0, 0.25], [0.5, 1.0]]
    """
    path = Path(path)
    values = to_array(anomaly_map)
    if values.ndim != 2 or values.size == 0:
        raise ShapeError(f"anomaly_map must be (H, W), but got {values.shape}")
    buffer = io.BytesIO()
    if path.suffix == ".npy":
        np.save(buffer, values)
        return write_atomic(path, buffer.getvalue())
    if path.suffix != ".png":
        raise ConfigError(f"{path} must end in .npy or .png, but got {path.suffix!r}")
    counted = values[values > -np.inf] if (values > -np.inf).any() else np.zeros(1)
    low, high = value_range or (float(counted.min()), float(values.max()))
    if value_range is None and low == high:
        high = low + 1.0
    codes = (normalize(values, (low, high)).astype(np.float64) * LEVELS).round().astype(np.uint16)
    scale, info = {"minimum": low, "maximum": high}, PngInfo()
    for key, value in scale.items():
        info.add_text(key, repr(value))
    Image.fromarray(codes).save(buffer, format="PNG", pnginfo=info)
    write_atomic(path.with_name(path.name + ".json"), json.dumps({**scale, "levels": LEVELS}) + "\n")
    return write_atomic(path, buffer.getvalue())


def load_map(path: str | Path) -> NDArray[np.float32]:
    """Load a file written by `save_map` as (H, W) float32; values of a PNG are exact to half a level.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load_map(save_map(Path(folder) / "a.npy", np.eye(3))).shape
        (3, 3)
    """
    path = Path(path)
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False), dtype=np.float32)
        with Image.open(path) as picture:
            low, high = float(picture.info["minimum"]), float(picture.info["maximum"])
            codes = np.asarray(picture, dtype=np.float64)
    except (OSError, ValueError, KeyError, UnidentifiedImageError) as error:
        raise DataError(f"{path} must be an anomaly map written by save_map, but got {error}") from error
    return (low + codes * ((high - low) / LEVELS)).astype(np.float32)
