"""`semflow remember`: a memory under the flow of a saved run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import semflow
from helpers.cli_cases import SIZE, picture, save
from semflow.app.cli import main
from semflow.bases import Memory, SemanticGaussian
from semflow.data import open_dataset
from semflow.errors import CheckpointError
from semflow.files.tensors import read_about, save_tensors
from semflow.recipes import StoredMemory, remember


@pytest.fixture
def run(shared_run: Path, tmp_path: Path) -> Path:
    """Copy the trained run, to change it."""
    return Path(shutil.copytree(shared_run, tmp_path / "run"))


def words(run: Path, data: Path, *more: str) -> list[str]:
    return ["remember", "--model", str(run), "--data", str(data), "--device", "cpu", *more]


def flow_of(run: Path) -> dict[str, torch.Tensor]:
    names = ("flows.", "features.", "head.")
    return {name: x for name, x in load_file(run / "model.safetensors").items() if name.startswith(names)}


def test_run_keeps_its_flow_and_gets_a_memory(run: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, config = flow_of(run), (run / "config.json").read_bytes()
    assert main(words(run, shared_data, "--size", "0.25")) == 0
    out = capsys.readouterr().out
    assert "stored 128, 32 vectors, one memory per scale" in out  # 8 images, maps of 8 x 8 and 4 x 4
    assert f"wrote {run}" in out
    after = flow_of(run)
    assert before.keys() == after.keys()
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    assert (run / "config.json").read_bytes() == config

    detector = semflow.load(run)
    assert [type(base) for base in detector.bases] == [Memory, Memory]
    assert isinstance(detector.training_base(0), SemanticGaussian)
    assert detector.score_log_det
    assert detector.provenance.memory == {
        "form": "nearest", "neighbors": 1, "size": 0.25, "space": "features", "projection": "none", "log_det": True,
        "seed": 0,
    }  # fmt: skip
    same = remember(semflow.load(run), open_dataset(shared_data, "train", SIZE), StoredMemory(size=0.25))
    test = torch.stack([sample.image for sample in open_dataset(shared_data, "test", SIZE)])
    assert torch.equal(detector.predict(test).score, same.predict(test).score)


def test_every_command_takes_the_run(run: Path, shared_data: Path, tmp_path: Path) -> None:
    assert main(words(run, shared_data, "--form", "distance", "--size", "40", "--output", str(tmp_path / "new"))) == 0
    assert read_about(run / "model.safetensors").get("memory") is None
    assert isinstance(semflow.load(run).base, SemanticGaussian)
    new = tmp_path / "new"
    assert sorted(path.name for path in new.iterdir()) == ["config.json", "log.jsonl", "model.safetensors"]
    detector = semflow.load(new)
    assert [base.vectors.shape[0] for base in detector.bases] == [40, 40]
    figures, test = tmp_path / "figures.json", str(shared_data / "test" / "hole")
    assert main(["evaluate", "--model", str(new), "--data", str(shared_data), "--json", str(figures)]) == 0
    assert json.loads(figures.read_text())["image_auroc"] > 0.9
    assert main(["predict", "--model", str(new), "--input", test, "--output", str(tmp_path / "results")]) == 0
    assert main(["export", "--model", str(new), "--output", str(tmp_path / "model.pt2")]) == 0
    assert main(words(new, shared_data)) == 0  # again, with another memory
    assert semflow.load(new).provenance.memory["form"] == "nearest"


def test_calibration_is_removed_or_made_anew(run: Path, shared_data: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    for number in range(12):
        save(picture(rng), tmp_path / "others" / "good" / f"{number:02d}.png")
    others = tmp_path / "others" / "good"
    assert main(["calibrate", "--model", str(run), "--data", str(others)]) == 0
    assert semflow.load(run).calibration.count == 12
    assert main(words(run, shared_data)) == 0
    assert semflow.load(run).calibration.count == 0
    assert main(words(run, shared_data, "--calibration", str(others))) == 0
    assert semflow.load(run).calibration.count == 12
    assert main(words(run, others, "--hold-out", "4", "--false-alarm-rate", "0.2")) == 0
    detector = semflow.load(run)
    assert (detector.calibration.count, detector.false_alarm_rate) == (4, pytest.approx(0.2))
    assert len(detector.provenance.fingerprints) == 16  # 8 of the flow, 8 of the memory


def test_failures_change_nothing(
    run: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    train = str(shared_data / "train" / "good")
    for wrong, message in (
        (words(run, tmp_path / "none"), "none must be a folder"),
        (words(run, shared_data, "--size", "-2"), "size must be positive, but got -2"),
        (words(run, shared_data, "--size", "1.5"), "size must be at most 1 as a share, but got 1.5"),
        (words(run, shared_data, "--neighbors", "0"), "--neighbors must be at least 1, but got 0"),
        (words(run, shared_data, "--hold-out", "8"), "calibration must"),
        (words(run, shared_data, "--hold-out", "4"), "must have at least 9 images for false_alarm_rate 0.1"),
        (words(run, shared_data, "--hold-out", "4", "--calibration", train), "--hold-out must be left out with"),
        (words(run, shared_data, "--false-alarm-rate", "0.2"), "--false-alarm-rate must come with --hold-out or"),
        (words(run, shared_data, "--calibration", train, "--false-alarm-rate", "0.2"), "must not be a training image"),
        (words(run, shared_data, "--output", str(shared_data)), "must be a new or empty folder"),
        (words(run / "model.safetensors", shared_data), "--model must be a run directory, but got the file"),
    ):
        assert main(wrong) == 2
        assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("memory", ["nearest", {"form": "other"}, {"name": 1}, {"size": -1}, [1], 3])
def test_forged_settings_of_a_memory_are_refused(run: Path, memory: object) -> None:
    path = run / "model.safetensors"
    save_tensors(path, load_file(path), {**read_about(path), "memory": memory})
    with pytest.raises(CheckpointError, match="must hold arguments of recipe sanflow, but got others"):
        semflow.load(run)


def test_model_without_the_vectors_of_its_memory_is_refused(run: Path, shared_data: Path) -> None:
    assert main(words(run, shared_data, "--size", "40")) == 0
    path = run / "model.safetensors"
    tensors, about = load_file(path), {k: v for k, v in read_about(path).items() if k != "sha256"}
    save_tensors(path, {k: x for k, x in tensors.items() if k != "base.1.vectors"}, about)
    with pytest.raises(CheckpointError, match=r"base\.1\.vectors must be in the saved state, but got none"):
        semflow.load(run)
