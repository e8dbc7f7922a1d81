"""Recipes of one's own: registration, and detectors that are saved and loaded again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import semflow
from helpers.own_recipe import own_features, own_recipe
from helpers.recipe_cases import COMMON, SMALL, small
from helpers.small_detector import make_detector, make_images
from semflow.detectors import Detector
from semflow.errors import CheckpointError, ConfigError
from semflow.recipes import RECIPES, Backbone, Couplings, build, fastflow, recipe
from semflow.training import TrainingConfig, fit

IMAGES = make_images(6)
BATCH = torch.stack([sample.image for sample in IMAGES])


def in_fresh_process(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run code that knows `semflow` and, if it imports it, `helpers`."""
    paths = [str(Path(semflow.__file__).parents[1]), str(Path(__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


SCORES = """
import sys, json, torch, semflow
from helpers.small_detector import make_images
batch = torch.stack([sample.image for sample in make_images(6)])
print(json.dumps(semflow.load(sys.argv[1]).predict(batch).score.tolist()))
"""


def test_own_recipe_loads_in_a_fresh_process_that_imports_it(tmp_path) -> None:
    detector = fit(own_recipe(couplings=Couplings(1, 8)), IMAGES, output=tmp_path / "run", progress=False)
    expected = detector.predict(BATCH).score.tolist()
    done = in_fresh_process("import helpers.own_recipe\n" + SCORES, tmp_path / "run")
    assert json.loads(done.stdout) == pytest.approx(expected, rel=1e-5), done.stderr
    assert semflow.load(tmp_path / "run").provenance == detector.provenance


def test_load_names_the_module_of_an_unregistered_recipe(tmp_path) -> None:
    path = semflow.save(own_recipe(), tmp_path / "model")
    done = in_fresh_process(SCORES, path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "CheckpointError" in last
    assert last.endswith("but got 'own_recipe'; import helpers.own_recipe before loading")


def test_load_rejects_a_recipe_of_the_same_name_from_another_module(tmp_path) -> None:
    path = semflow.save(small("fastflow"), tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "module": "other.recipes"}))
    with pytest.raises(CheckpointError, match=r"but got 'fastflow'; import other\.recipes before loading"):
        semflow.load(path)


def test_detector_with_own_features_is_saved_whole(tmp_path) -> None:
    features = own_features(seed=1)
    detector = fit(own_recipe(features), IMAGES, output=tmp_path / "run", progress=False)
    loaded = semflow.load(tmp_path / "run", features=own_features(seed=2))
    assert torch.equal(loaded.predict(BATCH).score, detector.predict(BATCH).score)
    assert loaded.provenance == detector.provenance
    again = semflow.load(semflow.save(loaded, tmp_path / "again"), features=own_features(seed=3))
    assert torch.equal(again.predict(BATCH).anomaly_map, detector.predict(BATCH).anomaly_map)


def test_load_asks_for_own_features(tmp_path) -> None:
    path = semflow.save(own_recipe(own_features()), tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"extractor, semflow\.features\.\w+\.FrozenFeatures, but got None"):
        semflow.load(path)
    other = semflow.save(own_recipe(), tmp_path / "other")
    with pytest.raises(CheckpointError, match="must hold a detector with features of your own, but got one without"):
        semflow.load(other, features=own_features())


def test_own_features_work_in_published_recipes(tmp_path) -> None:
    for name in ("sanflow", "cflow_ad", "fastflow"):
        settings = {**COMMON, **SMALL[name], "image_size": 32, "training.epochs": 1, "training.batch_size": 4}
        settings = {k: v for k, v in settings.items() if not k.startswith("backbone")}
        detector = build(name, {**settings, "backbone": own_features()})
        detector = fit(detector, IMAGES, output=tmp_path / name, progress=False)
        loaded = semflow.load(tmp_path / name, features=own_features(seed=5))
        assert torch.equal(loaded.predict(BATCH).score, detector.predict(BATCH).score)


def test_save_rejects_detectors_without_a_recipe_and_occupied_folders(tmp_path) -> None:
    detector = make_detector()
    detector.provenance = type(detector.provenance)()
    with pytest.raises(ConfigError, match="detector must have a recipe to be saved, but got none"):
        semflow.save(detector, tmp_path / "new")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="must be a new or empty folder"):
        semflow.save(own_recipe(), tmp_path)
    path = semflow.save(own_recipe(), tmp_path / "model")
    with pytest.raises(CheckpointError, match="must hold a detector of arguments"):
        semflow.save(own_recipe(seed=1), path)


def test_saving_into_a_run_keeps_its_configuration(tmp_path) -> None:
    detector = fit(own_recipe(), IMAGES, output=tmp_path / "run", progress=False)
    before = (tmp_path / "run" / "config.json").read_text()
    detector.calibrate([torch.stack([sample.image for sample in make_images(9, seed=1)])])
    semflow.save(detector, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_text() == before
    loaded = semflow.load(tmp_path / "run")
    assert loaded.false_alarm_rate == 0.1
    assert loaded.provenance.fingerprints == detector.provenance.fingerprints


def test_name_clash_between_modules_is_an_error() -> None:
    def sanflow(seed: int = 0) -> Detector:
        return small("sanflow", {"seed": seed})

    with pytest.raises(ConfigError, match=r"recipe sanflow must be registered by one module, but got semflow\.recipes"):
        recipe(sanflow)
    assert RECIPES["sanflow"].__module__ == "semflow.recipes.sanflow"


def test_variant_of_a_recipe_records_itself_and_keeps_training_defaults(monkeypatch) -> None:
    monkeypatch.setattr("semflow.recipes.registry.RECIPES", dict(RECIPES))

    @recipe
    def variant(blocks: int = 2, seed: int = 0) -> Detector:
        settings = {"couplings.blocks": blocks, "training.epochs": 7, "seed": seed}
        return build(fastflow, {**COMMON, **settings})

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    made = variant(3).provenance
    assert torch.equal(torch.rand(1), expected)
    assert (made.recipe, made.module, made.arguments) == ("variant", __name__, {"blocks": 3, "seed": 0})
    assert (made.image_size, made.training.epochs) == (64, 7)


def test_recipe_rejects_unknown_arguments_and_values_without_a_plain_form(monkeypatch) -> None:
    monkeypatch.setattr("semflow.recipes.registry.RECIPES", dict(RECIPES))
    with pytest.raises(TypeError, match="'blobs'"):
        fastflow(blobs=3)

    @recipe
    def with_function(activation: object = torch.relu, seed: int = 0) -> Detector:
        return small("fastflow")

    with pytest.raises(ConfigError, match="activation must be a number, string"):
        with_function()


def test_fit_uses_recorded_training_and_accepts_overrides(tmp_path) -> None:
    detector = own_recipe(Backbone("test_efficientnet", "random", (8,)), training=TrainingConfig(3, 5))
    fit(detector, IMAGES, output=tmp_path / "a", progress=False)
    fit(own_recipe(), IMAGES, TrainingConfig(1, 3), output=tmp_path / "b", progress=False)
    fit(own_recipe(), IMAGES, epochs=1, seed=4, output=tmp_path / "c", progress=False)
    found = [json.loads((tmp_path / name / "config.json").read_text())["training"] for name in "abc"]
    assert [(x["epochs"], x["batch_size"], x["seed"]) for x in found] == [(3, 5, 0), (1, 3, 0), (1, 4, 4)]
