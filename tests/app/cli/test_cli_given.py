"""Unexpected inputs: containers of images, devices, folders of defects, and unusual JSON files."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import semflow
from helpers.cli_cases import fit_words, make_photos, only_line, snapshot
from helpers.cli_cases import words as predict_words
from semflow.app.cli import main

CONTAINERS = {
    "film.mp4": "ffmpeg",
    "film.MOV": "ffmpeg",
    "photos.zip": "unpack it",
    "photos.tar.gz": "unpack it",
    "list.txt": "semflow score",
    "list.csv": "semflow score",
    "table.parquet": "semflow score",
    "paper.pdf": "save its pictures",
    "photos.npy": "as PNG",
}


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("command", ["predict", "fit", "calibrate", "evaluate", "export", "remember", "calibration"])
def test_container_of_images_is_named_with_what_to_do(
    command: str, name: str, shared_run: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = tmp_path / name, tmp_path / "new"
    file.write_bytes(b"content")
    words = {
        "predict": predict_words(shared_run, file, output),
        "fit": fit_words(file, output),
        "calibration": fit_words(shared_data, output, "--calibration", str(file)),
        "calibrate": ["calibrate", "--model", str(shared_run), "--data", str(file)],
        "evaluate": ["evaluate", "--model", str(shared_run), "--data", str(file)],
        "remember": ["remember", "--model", str(shared_run), "--data", str(file), "--output", str(output)],
        "export": ["export", "--model", str(shared_run), "--output", f"{output}.pt2", "--images", str(file)],
    }[command]
    assert main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"must be an image or a folder of images, but got the {kind(name)} {file}; " in line
    assert CONTAINERS[name] in line
    assert [path.name for path in tmp_path.iterdir()] == [name]


def kind(name: str) -> str:
    kinds = {"film": "video", "photos.z": "archive", "photos.t": "archive", "paper": "document", "photos.n": "array"}
    return next((kind for start, kind in kinds.items() if name.startswith(start)), "list")


def test_score_reads_lists_but_no_videos(shared_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    for name in ("film.mp4", "photos.zip", "list.csv"):
        (tmp_path / name).touch()
        words = ["score", "--model", str(shared_run), "--input", str(tmp_path / name), "--output", str(tmp_path / "o")]
        assert main(words) == 2
        assert "must be an image or a folder of images, but got the" in only_line(capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
@pytest.mark.parametrize("command", ["predict", "fit"])
def test_device_that_is_not_there_is_one_line(
    command: str, device: str, shared_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("needs a machine without MPS")
    photos = make_photos(tmp_path)
    words = (
        predict_words(shared_run, photos, tmp_path / "new")
        if command == "predict"
        else fit_words(photos, tmp_path / "new")
    )
    words[words.index("--device") + 1] = device
    assert main(words) == 2
    assert f"device must be available, but got {device}; use auto or cpu" in only_line(capsys)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:", "meta", "CUDA"])
def test_unknown_device_lists_the_known_ones(device: str, shared_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--model", str(shared_run), "--data", ".", "--device", device]) == 2
    assert f"--device must be auto, cpu, cuda, cuda:N or mps, but got {device}" in only_line(capsys)


def test_several_processes_choose_their_own_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from semflow.errors import DeviceError
    from semflow.training import launched_processes

    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with (
        pytest.raises(DeviceError, match="must be auto, cpu or cuda for several processes"),
        launched_processes("cuda:1"),
    ):
        pytest.fail("connected")


@pytest.mark.parametrize("command", ["fit", "calibrate", "remember", "calibration"])
@pytest.mark.parametrize(("folder", "named"), [("test/hole", "defects"), ("ground_truth/hole", "masks")])
def test_folder_of_defects_is_not_taken_for_normal(
    command: str,
    folder: str,
    named: str,
    shared_run: Path,
    shared_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, output = shared_data / folder, tmp_path / "new"
    run = Path(shutil.copytree(shared_run, tmp_path / "run"))
    words = {
        "fit": fit_words(data, output),
        "calibration": fit_words(shared_data, output, "--calibration", str(data)),
        "calibrate": ["calibrate", "--model", str(run), "--data", str(data), "--false-alarm-rate", "0.3"],
        "remember": ["remember", "--model", str(run), "--data", str(data), "--output", str(output), "--size", "9"],
    }[command]
    before = snapshot(run)
    assert main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert str(data / "0") in line
    assert f"must be normal, but got a folder of {named}" in line
    assert snapshot(run) == before
    assert not output.exists()
    if command == "calibrate":
        assert main([*words, "--allow-anomalous"]) == 0
        assert semflow.load(run).calibration.count == 4


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_saved_by_an_editor_with_a_mark_are_read(
    encoding: str, shared_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, photos = Path(shutil.copytree(shared_run, tmp_path / "run")), make_photos(tmp_path)
    config = run / "config.json"
    config.write_text(config.read_text(), encoding=encoding)
    assert main(predict_words(run, photos, tmp_path / "results")) == 0
    scores = tmp_path / "results" / "scores.json"
    scores.write_text(scores.read_text(), encoding=encoding)
    assert main(predict_words(run, photos, tmp_path / "results")) == 0
    assert "already complete" in capsys.readouterr().out
    from semflow.app.hub.transfer import _figures

    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps({"image_auroc": 0.5}), encoding=encoding)
    assert _figures(metrics) == {"image_auroc": 0.5}
    if encoding == "utf-8-sig":
        file = tmp_path / "fit.toml"
        file.write_text('recipe = "sanflow"\n', encoding=encoding)
        assert main(["fit", "--config", str(file), "--print-config"]) == 0


@pytest.mark.parametrize("link", [False, True])
def test_results_go_into_a_folder_that_exists(link: bool, shared_run: Path, shared_data: Path, tmp_path: Path) -> None:
    """A mount point, or a link to an empty folder; also for the run directory and the metrics."""
    photos = make_photos(tmp_path)
    places = {}
    for name in ("results", "run", "memory"):
        real = tmp_path / "disk" / name
        real.mkdir(parents=True)
        (tmp_path / name).symlink_to(real) if link else real.rename(tmp_path / name)
        places[name] = (tmp_path / name).stat().st_ino
    assert main(predict_words(shared_run, photos, tmp_path / "results")) == 0
    assert main(fit_words(shared_data, tmp_path / "run")) == 0
    words = ["--model", str(shared_run), "--data", str(shared_data), "--device", "cpu"]
    assert main(["remember", *words, "--output", str(tmp_path / "memory"), "--size", "50"]) == 0
    assert {name: (tmp_path / name).stat().st_ino for name in places} == places
    for name, file in {"results": "scores.json", "run": "model.safetensors", "memory": "model.safetensors"}.items():
        assert (tmp_path / name / file).is_file()
        assert not [path for path in (tmp_path / name).iterdir() if path.name.startswith(".")]
    if link:
        metrics = tmp_path / "disk" / "metrics.json"
        (tmp_path / "metrics.json").symlink_to(metrics)
        assert main(["evaluate", *words, "--json", str(tmp_path / "metrics.json")]) == 0
        assert (tmp_path / "metrics.json").is_symlink()
        assert json.loads(metrics.read_text())["images"] == 8


def test_metrics_go_to_a_device(shared_run: Path, shared_data: Path) -> None:
    if os.name != "posix":
        pytest.skip("needs POSIX")
    words = ["--model", str(shared_run), "--data", str(shared_data), "--device", "cpu"]
    assert main(["evaluate", *words, "--json", "/dev/null"]) == 0
    assert Path("/dev/null").is_char_device()
