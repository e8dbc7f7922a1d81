"""Fixtures: a tiny data set in the layout of MVTec AD, and a detector trained on it for one epoch."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semflow.app.cli import main

SIZE = 64


def picture(rng: np.random.Generator) -> np.ndarray:
    """Return noisy stripes."""
    stripes = 120 + 60 * np.sin(np.arange(SIZE) / 3)[None, :, None]
    return (stripes + rng.normal(0, 8, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)


def save(values: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "stripes"
    rng = np.random.default_rng(0)
    for number in range(8):
        save(picture(rng), root / "train" / "good" / f"{number}.png")
    for number in range(4):
        save(picture(rng), root / "test" / "good" / f"{number}.png")
        defective, mask = picture(rng), np.zeros((SIZE, SIZE), np.uint8)
        mask[10:30, 20 : 40 + number] = 255
        defective[mask > 0] = 255 - defective[mask > 0]
        save(defective, root / "test" / "hole" / f"{number}.png")
        save(mask, root / "ground_truth" / "hole" / f"{number}_mask.png")
    return root


@pytest.fixture
def data(shared_data: Path, tmp_path: Path) -> Path:
    """Copy the data set, for a test that changes it."""
    return Path(shutil.copytree(shared_data, tmp_path / "data"))


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Return the content of every file under a folder; None for folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return standard error, which must be one line."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


SMALL = [
    *("--backbone", "resnet18", "--weights", "random", "--image-size", str(SIZE)),
    *("--set", "couplings.blocks", "1", "couplings.position_channels", "16", "backbone.strides", "8,16"),
]


def fit_words(data: Path, output: Path, *more: str) -> list[str]:
    words = ["fit", "--data", str(data), "--output", str(output), "--epochs", "1", "--batch-size", "4"]
    return [*words, "--device", "cpu", *more, *SMALL]


@pytest.fixture(scope="session")
def shared_run(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "stripes"
    assert main(fit_words(shared_data, output)) == 0
    return output
