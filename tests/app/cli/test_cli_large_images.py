"""Images of 4000 x 3000 pixels: memory is bounded, and a defect of 20 pixels is found with tiles only."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semflow.app.cli import main

pytest.importorskip("skimage", reason="needs scikit-image: pip install semflow[demo]")

HEIGHT, WIDTH, DEFECT = 3000, 4000, 20
TOP, LEFT = 1500, 2100
SMALL = ["--recipe", "patchcore", "--backbone", "tf_efficientnet_lite0", "--weights", "packaged", "--device", "cpu"]
LIMIT = 1.5 * 2**30

RUN = """
import sys
from semflow.app.cli import main
code = main(sys.argv[1:])
with open("/proc/self/status") as file:  # getrusage would count the process that started this one
    print(next(int(line.split()[1]) for line in file if line.startswith("VmHWM")))
sys.exit(code)
"""


def part(seed: int, defect: bool = False) -> Image.Image:
    """Return a wall of bricks, a mirrored photograph with the noise of a camera, maybe with a dark pit."""
    from semflow.app.cli.demo_data import photograph

    rng, photo = np.random.default_rng(seed), photograph("brick")
    rows, columns = (
        np.abs((np.arange(length) + rng.integers(0, 2 * side)) % (2 * side) - side + 0.5).astype(int)
        for length, side in zip((HEIGHT, WIDTH), photo.shape, strict=True)
    )
    image = photo[rows][:, columns] + rng.normal(0, 0.01, (HEIGHT, WIDTH))
    if defect:
        y, x = np.indices((DEFECT, DEFECT)) - (DEFECT - 1) / 2
        image[TOP : TOP + DEFECT, LEFT : LEFT + DEFECT] *= np.where(np.hypot(y, x) < DEFECT / 2, 0.4, 1.0)
    return Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("walls")
    (root / "train").mkdir()
    (root / "test").mkdir()
    for seed in range(2):
        part(seed).save(root / "train" / f"{seed}.jpg", quality=95)
    part(10).save(root / "test" / "good.jpg", quality=95)
    part(10, defect=True).save(root / "test" / "pit.jpg", quality=95)
    return root


def fit(walls: Path, output: Path, *more: str) -> Path:
    words = ["fit", "--data", str(walls / "train"), "--output", str(output), *SMALL, *more, "--set", "coreset", "1000"]
    assert main(words) == 0
    return output


def scores(folder: Path) -> dict[str, float]:
    return {row["image"]: row["score"] for row in json.loads((folder / "scores.json").read_text())["images"]}


def place(folder: Path, name: str) -> tuple[float, float]:
    """Return row and column of the highest value of a map, as fractions."""
    found = np.load(folder / "maps" / f"{name}.npy")
    row, column = np.unravel_index(found.argmax(), found.shape)
    return float(row) / found.shape[0], float(column) / found.shape[1]


def is_at_defect(at: tuple[float, float]) -> bool:
    rows, columns = at[0] * HEIGHT - TOP, at[1] * WIDTH - LEFT
    return -DEFECT / 2 <= rows <= 1.5 * DEFECT and -DEFECT / 2 <= columns <= 1.5 * DEFECT


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs the peak of memory that Linux records")
def test_small_defect_is_found_with_tiles_in_bounded_memory(walls: Path, tmp_path: Path) -> None:
    tiles = fit(walls, tmp_path / "tiles", "--tile", "512", "--overlap", "64")
    words = ["predict", "--model", str(tiles), "--input", str(walls / "test"), "--output", str(tmp_path / "found")]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words, "--device", "cpu"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 1024 * int(done.stdout.splitlines()[-1]) < LIMIT
    found = scores(tmp_path / "found")
    assert found["pit.jpg"] > 1.1 * found["good.jpg"]
    assert is_at_defect(place(tmp_path / "found", "pit.jpg"))
    assert np.load(tmp_path / "found" / "maps" / "pit.jpg.npy").shape == (HEIGHT, WIDTH)

    whole = fit(walls, tmp_path / "whole")
    words = ["predict", "--model", str(whole), "--input", str(walls / "test"), "--output", str(tmp_path / "missed")]
    assert main([*words, "--device", "cpu"]) == 0
    missed = scores(tmp_path / "missed")
    assert missed["pit.jpg"] < 1.01 * missed["good.jpg"]
    assert not is_at_defect(place(tmp_path / "missed", "pit.jpg"))
