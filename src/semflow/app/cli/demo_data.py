"""Images of the demo: crops of real textures, in the folder layout that `fit` and `evaluate` read."""

from pathlib import Path

import numpy as np
from PIL import Image

from semflow._optional import find_optional
from semflow.data import decode_image
from semflow.errors import ConfigError

from .console import write_png
from .demo_defects import DEFECTS, Gray

TEXTURES = ("brick", "grass", "gravel")
CROP = 128
TRAINING_SHARE = 0.62  # of the photograph's width; test crops share no pixel with it
TRAINING_CROPS, GOOD_TESTS, TESTS_PER_KIND = 96, 10, 4


def photograph(name: str) -> Gray:
    """Read a photograph of scikit-image as gray values in [0, 1]. Nothing is downloaded."""
    path = find_optional("skimage") / "data" / f"{name}.png"
    if not path.is_file():
        raise ConfigError(f"{path} must exist, but got none; run pip install --force-reinstall scikit-image")
    return np.asarray(decode_image(path).convert("L"), dtype=np.float64) / 255.0


def write_texture(name: str, root: Path, seed: int) -> None:
    """Write a data set of one texture: train from the left of the photograph, test and ground_truth from the right."""
    image = photograph(name)
    rng = np.random.default_rng((seed, TEXTURES.index(name)))
    border = round(TRAINING_SHARE * image.shape[1])
    left, right = image[:, :border], image[:, border:]
    for number in range(TRAINING_CROPS):
        _save(root / "train" / "good" / f"{number:03d}.png", _crop(left, rng))
    for number in range(GOOD_TESTS):
        _save(root / "test" / "good" / f"{number:03d}.png", _crop(right, rng))
    for kind, defect in DEFECTS.items():
        for number in range(TESTS_PER_KIND):
            changed, mask = defect(_crop(right, rng), rng)
            _save(root / "test" / kind / f"{number:03d}.png", changed)
            _save(root / "ground_truth" / kind / f"{number:03d}_mask.png", mask.astype(np.float64))


def _crop(image: Gray, rng: np.random.Generator) -> Gray:
    """Cut out a random square, mirrored half of the time."""
    top, left = (int(rng.integers(0, side - CROP + 1)) for side in image.shape)
    crop = image[top : top + CROP, left : left + CROP]
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def _save(path: Path, values: Gray) -> None:
    write_png(path, Image.fromarray((np.clip(values, 0.0, 1.0) * 255.0).round().astype(np.uint8)))
