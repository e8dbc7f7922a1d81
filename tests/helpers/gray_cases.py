"""Gray image files, and the same images as RGB files."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 64


def textures(count: int, seed: int = 0, height: int = 72, width: int = 60) -> list[NDArray[np.uint8]]:
    """Noisy stripes (H, W)."""
    rng = np.random.default_rng(seed)
    stripes = 120 + 60 * np.sin(np.arange(width) / 3)
    return [(stripes + rng.normal(0, 20, (height, width))).clip(0, 255).astype(np.uint8) for _ in range(count)]


def in_rgb(values: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(values[..., None], 3, axis=-1)


def save_both(folder: Path, count: int = 12, seed: int = 0) -> tuple[Path, Path]:
    """Save the same images in the folders gray/ and rgb/, in layouts with train/good and test/good."""
    kinds = {"gray": lambda values: values, "rgb": in_rgb}
    for kind, convert in kinds.items():
        for part, first in (("train", seed), ("test", seed + 1)):
            place = folder / kind / part / "good"
            place.mkdir(parents=True)
            for number, values in enumerate(textures(count, first)):
                Image.fromarray(convert(values)).save(place / f"{number:02d}.png")
    return folder / "gray", folder / "rgb"
