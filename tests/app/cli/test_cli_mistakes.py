"""User errors: exit code 2, one line on standard error that names the problem, and no file written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.cli_cases import SIZE, fit_words, only_line, picture, save, snapshot
from semflow.app.cli import main


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


# Change of a copy of the data set, and the file or folder that the message must name.
BROKEN_TRAINING: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty folder": (lambda data: [path.unlink() for path in (data / "train" / "good").iterdir()], "data/train"),
    "not an image": (lambda data: (data / "train" / "good" / "3.png").write_text("a letter"), "3.png"),
    "empty file": (lambda data: (data / "train" / "good" / "3.png").write_bytes(b""), "3.png"),
    "truncated": (lambda data: truncate(data / "train" / "good" / "5.png"), "5.png"),
    "no folder": (shutil.rmtree, "data"),
}


@pytest.mark.parametrize("case", BROKEN_TRAINING)
def test_fit_rejects_broken_data(case: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, named = BROKEN_TRAINING[case]
    change(data)
    before = snapshot(tmp_path)
    assert main(fit_words(data, tmp_path / "run")) == 2
    assert named in only_line(capsys)
    assert snapshot(tmp_path) == before


def wrong_mask(data: Path) -> None:
    save(np.full((SIZE, SIZE // 2), 255, np.uint8), data / "ground_truth" / "hole" / "2_mask.png")


BROKEN_TESTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "mask of another size": (wrong_mask, "2_mask.png"),
    "image without its mask": (lambda data: (data / "ground_truth" / "hole" / "1_mask.png").unlink(), "1.png"),
    "truncated image": (lambda data: truncate(data / "test" / "good" / "0.png"), "0.png"),
    "truncated mask": (lambda data: truncate(data / "ground_truth" / "hole" / "3_mask.png"), "3_mask.png"),
    "no defects": (lambda data: shutil.rmtree(data / "test" / "hole"), "only normal images"),
    "no test set": (lambda data: shutil.rmtree(data / "test"), "data"),
}


@pytest.mark.parametrize("case", BROKEN_TESTS)
def test_evaluate_rejects_broken_data(
    case: str, shared_run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, named = BROKEN_TESTS[case]
    change(data)
    before = snapshot(tmp_path)
    capsys.readouterr()
    words = ["evaluate", "--model", str(shared_run), "--data", str(data), "--json", str(tmp_path / "metrics.json")]
    assert main(words) == 2
    assert named in only_line(capsys)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("case", ["empty", "not an image", "truncated", "absent", "not empty", "file as output"])
def test_predict_rejects_broken_input(
    case: str, shared_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, output, named = tmp_path / "photos", tmp_path / "results", "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    if case != "empty":
        for name in ("a.png", "b.png", "c.png"):
            save(picture(rng), photos / name)
    if case == "not an image":
        (photos / "b.png").write_text("a letter")
        named = "b.png"
    elif case == "truncated":
        truncate(photos / "c.png")
        named = "c.png"
    elif case == "absent":
        photos, named = tmp_path / "nowhere", "nowhere"
    elif case == "not empty":
        output.mkdir()
        (output / "notes.txt").write_text("text")
        named = "results must be a new or empty folder"
    elif case == "file as output":
        output.write_text("text")
        named = "results must be a new or empty folder, but got a file"
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert main(["predict", "--model", str(shared_run), "--input", str(photos), "--output", str(output)]) == 2
    assert named in only_line(capsys)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("case", ["another version", "no run", "broken config", "no model", "broken model"])
def test_predict_rejects_a_broken_run(
    case: str, shared_run: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(shared_run, tmp_path / "run"))
    named = "config.json"
    if case == "another version":
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({**config, "format": 99}))
        named = "must have format 1, but got 99"
    elif case == "no run":
        shutil.rmtree(run)
    elif case == "broken config":
        (run / "config.json").write_text("{")
    else:
        named = "model.safetensors"
        (run / named).unlink() if case == "no model" else truncate(run / named)
    before = snapshot(tmp_path)
    capsys.readouterr()
    output = tmp_path / "results"
    assert main(["predict", "--model", str(run), "--input", str(shared_data), "--output", str(output)]) == 2
    line = only_line(capsys)
    assert named in line
    assert "run" in line
    assert snapshot(tmp_path) == before


WRONG_OPTIONS: dict[str, tuple[list[str], str]] = {
    "backbone": (["--backbone", "resnet_of_dreams"], "resnet_of_dreams"),
    "weights": (["--weights", "nowhere.pth"], "nowhere.pth"),
    "recipe": (["--recipe", "soup"], "sanflow"),
    "epochs": (["--epochs", "0"], "--epochs"),
    "epochs that are not a number": (["--epochs", "many"], "many"),
    "batch size": (["--batch-size", "-1"], "--batch-size"),
    "image size": (["--image-size", "0"], "--image-size"),
    "device": (["--device", "abacus"], "abacus"),
    "workers": (["--workers", "-1"], "--workers"),
    "seed": (["--seed", "-1"], "--seed"),
    "seed that is too large": (["--seed", "9" * 23], "--seed"),
    "file as parent of the output": (["--output", f"{__file__}/run"], Path(__file__).name),
    "unknown option": (["--epoch", "3"], "--epoch"),
    "unknown recipe argument": (["--set", "blobs", "3"], "couplings.position_channels"),
    "wrong type of a recipe argument": (["--set", "couplings.blocks", "three"], "couplings.blocks"),
    "wrong item of a tuple": (["--set", "backbone.strides", "8,big"], "backbone.strides"),
    "name without value": (["--set", "couplings.blocks"], "--set"),
}


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_fit_rejects_options(case: str, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, named = WRONG_OPTIONS[case]
    base = ["fit", "--data", str(shared_data), "--output", str(tmp_path / "run"), "--device", "cpu", "--epochs", "1"]
    base += ["--backbone", "resnet18", "--weights", "random", "--image-size", "64"]
    assert main([*base, *words]) == 2
    assert named in only_line(capsys)
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("words", [["--seed", "-1"], ["--epochs", "0"]])
def test_demo_rejects_numbers(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--output", str(tmp_path / "demo"), *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert words[0] in shown.err
    assert len(shown.err.splitlines()) == 1
    assert snapshot(tmp_path) == {}


def test_evaluate_checks_the_json_path_before_scoring(
    shared_run: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("text")
    place = tmp_path / "file" / "metrics.json"
    capsys.readouterr()
    assert main(["evaluate", "--model", str(shared_run), "--data", str(shared_data), "--json", str(place)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert str(tmp_path / "file") in shown.err
    assert len(shown.err.splitlines()) == 1  # no line of progress either


@pytest.mark.parametrize("checkpoint", [False, True])
def test_failed_fit_leaves_a_run_only_with_a_checkpoint(
    checkpoint: bool, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        if checkpoint:
            (tmp_path / "run" / "checkpoint.safetensors").touch()
        raise torch.OutOfMemoryError("batch")

    monkeypatch.setattr("semflow.training.fitting.train_epoch", fail)
    assert main(fit_words(shared_data, tmp_path / "run")) == 2
    expected = {"run", "run/config.json", "run/checkpoint.safetensors"} if checkpoint else set()
    assert snapshot(tmp_path).keys() == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("command", ["demo", "fit", "evaluate", "predict"])
def test_missing_cuda_is_reported(
    command: str, shared_run: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {
        "demo": ["demo", "--output", str(tmp_path / "demo")],
        "fit": [word for word in fit_words(shared_data, tmp_path / "run") if word not in ("--device", "cpu")],
        "evaluate": ["evaluate", "--model", str(shared_run), "--data", str(shared_data)],
        "predict": [
            "predict",
            "--model",
            str(shared_run),
            "--input",
            str(shared_data),
            "--output",
            str(tmp_path / "r"),
        ],
    }[command]
    capsys.readouterr()
    assert main([words[0], "--device", "cuda", *words[1:]]) == 2
    line = only_line(capsys)
    assert "cuda" in line
    assert "cpu" in line  # what to do instead
    assert snapshot(tmp_path) == {}
