"""Fixtures: a tiny data set in the layout of MVTec AD, and a detector trained on it for one epoch."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.cli_cases import SIZE, fit_words, picture, save
from semflow.app.cli import main


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


@pytest.fixture(scope="session")
def shared_run(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "stripes"
    assert main(fit_words(shared_data, output)) == 0
    return output
