"""Parts that lie anywhere in the image: screws, shifted by chance."""

from pathlib import Path

import numpy as np
from PIL import Image

LOOSE = "loose_screw"
EVERY = 5  # training image


def write_loose(source: Path, root: Path, seed: int) -> None:
    """Write a fifth of the training images and all test images of a category, each shifted cyclically.

    The background continues on the other side, since it is the same everywhere.
    """
    rng = np.random.default_rng((seed, 3))
    train = sorted((source / "train" / "good").iterdir())[::EVERY]
    for path in (*train, *sorted((source / "test").glob("*/*"))):
        masks = (source / "ground_truth" / path.parent.name).glob(f"{path.stem}_mask.*")
        with Image.open(path) as image:
            down, right = (int(rng.integers(side)) for side in (image.height, image.width))
        for one in (path, *masks):
            target = root / one.relative_to(source).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(one) as image:
                Image.fromarray(np.roll(np.asarray(image), (down, right), (0, 1))).save(target)
