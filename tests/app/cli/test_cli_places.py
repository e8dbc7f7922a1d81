"""Paths of `semflow predict` and `calibrate`: output inside the input, long names, a full disk."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.cli_cases import only_line, picture, save
from semflow.app.cli import main


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    for name in ("a", "b"):
        save(picture(rng), tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


def words(run: Path, photos: Path | str, output: Path | str, *more: str) -> list[str]:
    start = ["predict", "--model", str(run), "--input", str(photos), "--output", str(output), "--device", "cpu"]
    return [*start, *more]


def scored(output: Path) -> list[str]:
    return [record["image"] for record in json.loads((output / "scores.json").read_text())["images"]]


def test_predict_ignores_its_output_inside_the_input(
    shared_run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photos)
    assert main(words(shared_run, ".", "results")) == 0
    assert scored(photos / "results") == ["a.png", "b.png"]
    assert main(words(shared_run, ".", "results")) == 0
    assert "results is already complete" in capsys.readouterr().out
    (photos.parent / "linked").symlink_to(photos)
    assert main(words(shared_run, photos.parent / "linked", photos / "results")) == 0
    assert "results is already complete" in capsys.readouterr().out
    for name in ("a.png", "b.png"):
        (photos / name).unlink()
    assert main(words(shared_run, ".", "results")) == 2
    assert "but got none, only results (results of semflow)" in only_line(capsys)


def test_image_skipped_before_stops_a_command_without_skip(
    shared_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "c.png").write_text("not an image")
    assert main(words(shared_run, photos, tmp_path / "out", "--on-error", "skip")) == 0
    assert main(words(shared_run, photos, tmp_path / "out", "--on-error", "skip")) == 0
    assert "already complete" in capsys.readouterr().out
    assert main(words(shared_run, photos, tmp_path / "out")) == 2
    assert only_line(capsys).startswith(f"error: {photos / 'c.png'} must be an intact image")


@pytest.mark.parametrize("format", ["npy", "png16"])
def test_predict_shortens_long_names(shared_run: Path, photos: Path, tmp_path: Path, format: str) -> None:
    longest = ["x" * 251, "x" * 250 + "y", "\u56fe" * 83 + "z"]
    for number, name in enumerate(longest):
        folder = photos / ("" if number else "f" * 255)
        folder.mkdir(exist_ok=True)
        assert len(os.fsencode(f"{name}.png")) in (254, 255)
        (folder / f"{name}.png").write_bytes((photos / "a.png").read_bytes())
    assert main(words(shared_run, photos, tmp_path / "out", "--map-format", format)) == 0
    records = json.loads((tmp_path / "out" / "scores.json").read_text())["images"]
    assert len(records) == 5
    for place in ("overlay", "map"):
        assert len({record[place] for record in records}) == 5
        assert all((tmp_path / "out" / record[place]).is_file() for record in records)
    same = {f"{name}.png" for name in longest} | {"a.png"}
    assert len({record["score"] for record in records if record["image"].rpartition("/")[2] in same}) == 1


def test_calibrate_on_a_full_disk_keeps_the_model(
    shared_run: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource", reason="needs POSIX")
    run = Path(shutil.copytree(shared_run, tmp_path / "run"))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    rng = np.random.default_rng(7)
    for number in range(9):
        save(picture(rng), tmp_path / "normal" / f"{number}.png")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, former[1]))
    try:
        assert main(["calibrate", "--model", str(run), "--data", str(tmp_path / "normal"), "--device", "cpu"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert only_line(capsys).startswith(f"error: {run} must be writable, but got File too large")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
