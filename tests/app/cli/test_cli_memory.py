"""Commands that run out of memory name the batch size to try."""

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.cli_cases import fit_words, picture, save
from semflow.app.cli import main


def full(*args: object, **kwargs: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")


@pytest.mark.parametrize("command", ["evaluate", "predict", "calibrate", "remember"])
@pytest.mark.parametrize(("size", "advice"), [("6", "3"), ("1", "a smaller image_size or a smaller backbone")])
def test_command_names_the_batch_size(
    command: str, size: str, advice: str, shared_run: Path, shared_data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rng = np.random.default_rng(7)
    for number in range(9):
        save(picture(rng), tmp_path / "good" / f"{number}.png")
    words = {
        "evaluate": ["--data", str(shared_data)],
        "predict": ["--input", str(tmp_path / "good"), "--output", str(tmp_path / "results")],
        "calibrate": ["--data", str(tmp_path / "good")],
        "remember": ["--data", str(tmp_path / "good"), "--output", str(tmp_path / "memory")],
    }[command]
    monkeypatch.setattr("semflow.features.FrozenFeatures.forward", full)
    capsys.readouterr()
    assert main([command, "--model", str(shared_run), *words, "--batch-size", size, "--device", "cpu"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: out of memory at a batch size of {size}; try {advice}"


def test_fit_names_the_batch_size(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("semflow.detectors.Detector.loss", full)
    assert main(fit_words(shared_data, tmp_path / "run")) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: out of memory at a batch size of 4; try 2")
