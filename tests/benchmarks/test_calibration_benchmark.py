"""Counts of `benchmarks.calibration`, on small random images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import calibration
from PIL import Image
from scipy.stats import betabinom

import semflow.recipes
from semflow.errors import ConfigError


def save(rng: np.random.Generator, path: Path, defective: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = rng.integers(90, 160, (32, 32, 3), dtype=np.uint8)
    if defective:
        values[8:24, 8:24] = 255
    Image.fromarray(values).save(path)


@pytest.fixture
def screw(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(45):
        save(rng, tmp_path / "mvtec" / "screw" / "train" / "good" / f"{number}.png")
    for number in range(11):
        save(rng, tmp_path / "mvtec" / "screw" / "test" / "good" / f"{number}.png")
    for number in range(3):
        save(rng, tmp_path / "mvtec" / "screw" / "test" / "hole" / f"{number}.png", defective=True)
    return tmp_path / "mvtec"


def test_command_counts_and_continues(screw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = semflow.recipes.build
    seeds: list[object] = []

    def small(recipe: str, settings: dict[str, object]) -> semflow.Detector:
        seeds.append(settings["seed"])
        backbone = {"backbone.name": "test_efficientnet", "backbone.weights": "random", "backbone.strides": (8, 16)}
        return whole(recipe, {**settings, **backbone, "couplings.blocks": 1, "couplings.position_channels": 8})

    monkeypatch.setattr(semflow.recipes, "build", small)
    words = ["--data", str(screw), "--only", "screw", "--epochs", "1", "--image-size", "32", "--seeds", "3"]
    words += ["--whole", "screw"]
    assert calibration.main([*words, "--json", str(tmp_path / "out.json")]) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    found = written["results"]["screw"]["3"]
    assert (written["seeds"], written["epochs"]) == ([3], 1)
    assert set(found["metrics"]) == set(found["whole"]) == {"image_auroc", "pixel_auroc", "aupro"}
    assert 0 <= found["metrics"]["image_auroc"] <= 1
    assert found["metrics"]["aupro"] is None  # without masks
    assert seeds == [3, 3]
    assert written["command"].startswith("python -m benchmarks.calibration --data")
    assert (found["train_images"], found["calibration_images"]) == (36, 9)
    assert (found["good_test_images"], found["defects"]) == (11, 3)
    for name in ("held_out", "trained_on"):
        assert list(found[name]) == ["0.1"]
        assert found[name]["0.1"]["of"] == 11
        assert 0 <= found[name]["0.1"]["false_alarms"] <= 11
    for what in ("image", "mask"):
        rates = found["resampled"][what]["0.1"]
        assert rates["exact"] == pytest.approx(1 / 11, abs=1e-5)
        assert abs(rates["rate"] - 1 / 11) < 0.011  # five standard errors
    assert found["same_score"] < 1e-4
    assert found["commit"] == found["whole_commit"] == written["commit"]
    for lost, trainings in (("whole", 1), ("metrics", 1), (None, 0)):  # as after a kill
        del seeds[:]
        incomplete = json.loads(json.dumps(written))
        incomplete["results"]["screw"]["3"].pop(lost, None)
        (tmp_path / "out.json").write_text(json.dumps(incomplete))
        assert calibration.main([*words, "--json", str(tmp_path / "out.json")]) == 0
        assert len(seeds) == trainings
        assert json.loads((tmp_path / "out.json").read_text()) == written
    assert calibration.begun(tmp_path / "out.json", {**written, "epochs": 2}) == {}


def test_decide_counts_alarms_at_each_possible_rate() -> None:
    kept = torch.stack([torch.arange(19.0), torch.arange(19.0) + 100])
    scores, maxima = torch.tensor([17.5, 18.5, 3.0, 30.0]), torch.tensor([100.0, 118.5, 130.0, 0.0])
    found = calibration.decide(kept, scores, maxima, torch.tensor([0, 0, 0, 1]))
    assert list(found) == ["0.1", "0.05"]
    assert [found[rate]["false_alarms"] for rate in found] == [2, 1]
    assert [found[rate]["false_masks"] for rate in found] == [2, 2]
    assert [found[rate]["detection_rate"] for rate in found] == [1.0, 1.0]
    assert found["0.1"]["expected"] == [0, int(betabinom.ppf(0.975, 3, 2, 18))]


def test_missing_data_are_an_error() -> None:
    with pytest.raises(ConfigError, match="--data must be the folder that contains screw"):
        calibration.main(["--only", "screw"])
