"""Images and a model to score them with, and the words of the two commands that do."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from semflow.app.cli import main

SIZE = 32
OFF = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ADDRESS": "",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])),
}
"""No statistics are sent, no cluster is used but the test's own, and its workers find the modules of these tests."""


def make_images(folder: Path, count: int, seed: int = 0) -> Path:
    """Noise on stripes, in three subfolders."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        values = 120 + 60 * np.sin(np.arange(SIZE) / 3)[None, :, None] + rng.normal(0, 20, (SIZE, SIZE, 3))
        path = folder / str(number % 3) / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path)
    return folder


def make_run(folder: Path) -> Path:
    """A calibrated model, small enough to load in no time."""
    make_images(folder / "data" / "train" / "good", 24)
    for place in (folder / "data" / "train" / "good").glob("*/*.png"):
        place.rename(folder / "data" / "train" / "good" / place.name)
    words = ["fit", "--data", str(folder / "data"), "--output", str(folder / "run"), "--epochs", "1", "--device", "cpu"]
    words += ["--backbone", "test_byobnet", "--weights", "random", "--image-size", str(SIZE), "--hold-out", "10"]
    words += ["--recipe", "sanflow"]
    assert (
        main([*words, "--set", "couplings.blocks", "1", "couplings.position_channels", "4", "backbone.strides", "8"])
        == 0
    )
    return folder / "run"


def score_words(run: Path, images: Path, output: Path, *more: str) -> list[str]:
    words = ["score", "--model", str(run), "--input", str(images), "--output", str(output), "--device", "cpu"]
    return [*words, "--threads", "1", *more]


def files(output: Path) -> dict[str, tuple[int, int]]:
    """The committed blocks: whoever writes one again gives it another inode and time."""
    found = (entry for entry in os.scandir(output / "blocks") if not entry.name.startswith("."))
    return {entry.name: (entry.stat().st_ino, entry.stat().st_mtime_ns) for entry in found}
