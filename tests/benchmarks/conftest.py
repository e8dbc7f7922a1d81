"""A small data set in the layout of MVTec AD."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZE = 64


def save(values: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def picture(rng: np.random.Generator) -> np.ndarray:
    stripes = 120 + 60 * np.sin(np.arange(SIZE) / 3)[None, :, None]
    return (stripes + rng.normal(0, 8, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def mvtec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of 64 px, named as two of the paper's."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for category in ("screw", "toothbrush"):
        for number in range(6):
            save(picture(rng), root / category / "train" / "good" / f"{number}.png")
        for number in range(3):
            save(picture(rng), root / category / "test" / "good" / f"{number}.png")
            defective, mask = picture(rng), np.zeros((SIZE, SIZE), np.uint8)
            mask[10:30, 20 : 40 + number] = 255
            defective[mask > 0] = 255 - defective[mask > 0]
            save(defective, root / category / "test" / "hole" / f"{number}.png")
            save(mask, root / category / "ground_truth" / "hole" / f"{number}_mask.png")
    return root


@pytest.fixture
def categories(tmp_path: Path) -> Path:
    """Return a folder of two small categories with good images and masks of defects."""
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 128)):
        folder = tmp_path / "data" / name
        for kind, count in (("train/good", 3), ("test/good", 2), ("test/hole", 2)):
            (folder / kind).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(low, low + 100, (64, 64, 3)).astype(np.uint8)
                if kind == "test/hole":
                    pixels[8:24, 8:24] = 127
                Image.fromarray(pixels).save(folder / kind / f"{k}.png")
        (folder / "ground_truth" / "hole").mkdir(parents=True)
        for k in range(2):
            mask = np.zeros((64, 64), np.uint8)
            mask[8:24, 8:24] = 255
            Image.fromarray(mask).save(folder / "ground_truth" / "hole" / f"{k}_mask.png")
    return tmp_path / "data"
