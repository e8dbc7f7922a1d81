"""Every mistake of a user: exit code 2, one line on standard error that names what is wrong, nothing written."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SIZE, fit_words, picture, save
from test_cli_commands import snapshot

from semflow.cli import main
from semflow.report import staged_folder


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# What is spoiled in a copy of the data set, and which file or folder the message must name.
SPOILED_TRAINING: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty folder": (lambda data: [path.unlink() for path in (data / "train" / "good").iterdir()], "data/train"),
    "no image": (lambda data: (data / "train" / "good" / "3.png").write_text("a letter"), "3.png"),
    "empty file": (lambda data: (data / "train" / "good" / "3.png").write_bytes(b""), "3.png"),
    "truncated": (lambda data: truncate(data / "train" / "good" / "5.png"), "5.png"),
    "no folder": (shutil.rmtree, "data"),
}


@pytest.mark.parametrize("case", SPOILED_TRAINING)
def test_fit_on_broken_data(case: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, named = SPOILED_TRAINING[case]
    spoil(data)
    before = snapshot(tmp_path)
    assert main(fit_words(data, tmp_path / "run")) == 2
    assert named in only_line(capsys)
    assert snapshot(tmp_path) == before


def wrong_mask(data: Path) -> None:
    save(np.full((SIZE, SIZE // 2), 255, np.uint8), data / "ground_truth" / "hole" / "2_mask.png")


SPOILED_TESTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "mask of another size": (wrong_mask, "2_mask.png"),
    "image without its mask": (lambda data: (data / "ground_truth" / "hole" / "1_mask.png").unlink(), "1.png"),
    "truncated image": (lambda data: truncate(data / "test" / "good" / "0.png"), "0.png"),
    "truncated mask": (lambda data: truncate(data / "ground_truth" / "hole" / "3_mask.png"), "3_mask.png"),
    "no defects": (lambda data: shutil.rmtree(data / "test" / "hole"), "only normal images"),
    "no test set": (lambda data: shutil.rmtree(data / "test"), "data"),
}


@pytest.mark.parametrize("case", SPOILED_TESTS)
def test_evaluate_on_broken_data(
    case: str, shared_run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, named = SPOILED_TESTS[case]
    spoil(data)
    before = snapshot(tmp_path)
    capsys.readouterr()
    words = ["evaluate", "--model", str(shared_run), "--data", str(data), "--json", str(tmp_path / "metrics.json")]
    assert main(words) == 2
    assert named in only_line(capsys)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("case", ["empty", "no image", "truncated", "absent", "occupied", "file in the way"])
def test_predict_on_broken_input(
    case: str, shared_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, output, named = tmp_path / "photos", tmp_path / "results", "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    if case != "empty":
        for name in ("a.png", "b.png", "c.png"):
            save(picture(rng), photos / name)
    if case == "no image":
        (photos / "b.png").write_text("a letter")
        named = "b.png"
    elif case == "truncated":
        truncate(photos / "c.png")
        named = "c.png"
    elif case == "absent":
        photos, named = tmp_path / "nowhere", "nowhere"
    elif case == "occupied":
        output.mkdir()
        (output / "precious.txt").write_text("of the user")
        named = "results is not empty"
    elif case == "file in the way":
        output.write_text("of the user")
        named = "results is a file"
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert main(["predict", "--model", str(shared_run), "--input", str(photos), "--output", str(output)]) == 2
    assert named in only_line(capsys)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("case", ["another version", "no run", "broken config", "no model", "broken model"])
def test_a_run_that_cannot_be_used(
    case: str, shared_run: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(shared_run, tmp_path / "run"))
    named = "config.json"
    if case == "another version":
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({**config, "format": 99}))
        named = "another version"
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
    "epochs": (["--epochs", "0"], "epochs"),
    "epochs that are no number": (["--epochs", "many"], "many"),
    "batch size": (["--batch-size", "-1"], "batch_size"),
    "image size": (["--image-size", "0"], "image_size"),
    "device": (["--device", "abacus"], "abacus"),
    "unknown option": (["--epoch", "3"], "--epoch"),
    "unknown argument of the recipe": (["--set", "blobs", "3"], "blobs"),
    "wrong type for the recipe": (["--set", "blocks", "three"], "blocks"),
    "what has its own option": (["--set", "seed", "3"], "--seed"),
}


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_wrong_options(case: str, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, named = WRONG_OPTIONS[case]
    base = ["fit", "--data", str(shared_data), "--output", str(tmp_path / "run"), "--device", "cpu", "--epochs", "1"]
    base += ["--backbone", "resnet18", "--weights", "random", "--image-size", "64"]
    assert main([*base, *words]) == 2
    assert named in only_line(capsys)
    assert snapshot(tmp_path) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that must be missing")
@pytest.mark.parametrize("command", ["demo", "fit", "evaluate", "predict"])
def test_cuda_that_is_not_there(
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


@pytest.mark.parametrize(
    ("words", "named"),
    [(["fit"], "--data"), (["dance"], "dance"), (["fit", "--data"], "--data"), (["--verbose"], "--verbose")],
)
def test_words_that_are_no_command(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    line = only_line(capsys)
    assert named in line
    assert "--help" in line


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("semflow.cli.evaluate.run", wrong)
    with pytest.raises(ZeroDivisionError):
        main(["evaluate", "--model", str(tmp_path), "--data", str(tmp_path)])


def test_a_polite_kill_ends_like_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(_: object) -> None:
        with staged_folder(tmp_path / "results") as staged:
            (staged / "half.txt").touch()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    former = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("semflow.cli.evaluate.run", killed)
    try:
        assert main(["evaluate", "--model", str(tmp_path), "--data", str(tmp_path)]) == 130
    finally:
        signal.signal(signal.SIGTERM, former)
    assert only_line(capsys) == "interrupted"
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "results"), "error: results: Permission denied"),
        (OSError(28, "No space left on device"), "error: No space left on device"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "error: out of memory; choose a smaller"),
    ],
)
def test_what_the_machine_refuses_is_one_line_too(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> None:
        raise error

    monkeypatch.setattr("semflow.cli.evaluate.run", refuse)
    assert main(["evaluate", "--model", str(tmp_path), "--data", str(tmp_path)]) == 2
    assert only_line(capsys).startswith(line)


def run_process(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "semflow", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_as_a_process_a_mistake_is_one_line(tmp_path: Path) -> None:
    """With everything that libraries might print on import."""
    (tmp_path / "photos").mkdir()
    done = run_process("fit", "--data", str(tmp_path / "photos"), "--output", str(tmp_path / "run"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "photos" in done.stderr
    assert snapshot(tmp_path) == {"photos": None}


def test_help_takes_less_than_a_second() -> None:
    """Of processor time, which does not depend on what else the machine is doing."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_process("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    assert all(name in done.stdout for name in ("demo", "fit", "evaluate", "predict"))


@pytest.mark.parametrize("command", ["demo", "fit", "evaluate", "predict"])
def test_each_command_explains_each_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    for option in {"demo": ["--output", "--seed"], "fit": ["--recipe", "--resume"]}.get(command, ["--model"]):
        assert option in shown
