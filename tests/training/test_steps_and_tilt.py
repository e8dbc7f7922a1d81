"""Training for a number of steps, and with a tilted loss."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.after_epoch import AfterEpoch
from helpers.small_detector import make_detector, make_images
from semflow.detectors import Detector
from semflow.errors import ConfigError
from semflow.training import TrainingConfig, fit

IMAGES = make_images(10)


@given(st.integers(1, 500), st.integers(1, 16), st.integers(1, 1000))
def test_epochs_are_the_fewest_that_make_the_steps(steps, batch_size, images) -> None:
    config = TrainingConfig(epochs=7, batch_size=batch_size, steps=steps).for_images(images)
    batches = len(range(0, images, batch_size))
    assert config.steps is None
    assert (config.epochs - 1) * batches < steps <= config.epochs * batches
    assert TrainingConfig(epochs=7, batch_size=batch_size).for_images(images).epochs == 7


def log(run) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_steps_take_the_place_of_epochs_unless_these_are_given(tmp_path) -> None:
    training = TrainingConfig(epochs=9, batch_size=4, steps=4)
    detector = fit(make_detector(), IMAGES, training, output=tmp_path / "steps", progress=False)
    assert len(log(tmp_path / "steps")) == 2  # of 3 steps each
    other = fit(make_detector(), IMAGES, training, epochs=2, output=tmp_path / "epochs", progress=False)
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in detector.state_dict().items())
    fit(make_detector(), IMAGES, training, batch_size=10, output=tmp_path / "batch", progress=False)
    assert len(log(tmp_path / "batch")) == 4
    resumed = fit(make_detector(), IMAGES, training, output=tmp_path / "steps", resume=True, progress=False)
    assert all(torch.equal(x, resumed.state_dict()[name]) for name, x in detector.state_dict().items())


@pytest.mark.parametrize("option", ["steps", "tilt"])
def test_options_must_be_positive(option) -> None:
    with pytest.raises(ConfigError, match=f"^{option} must be "):
        TrainingConfig(**{option: 0 if option == "steps" else 0.0})


def test_run_of_a_version_without_the_options_is_resumed(tmp_path) -> None:
    whole = fit(make_detector(), IMAGES, output=tmp_path, progress=False)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("steps", "tilt"):
        assert config["training"].pop(name) is None
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = fit(make_detector(), IMAGES, output=tmp_path, resume=True, progress=False)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in whole.state_dict().items())


@pytest.mark.parametrize("locations", [None, 40])
def test_fit_tilts_the_loss_and_leaves_the_objective(locations, tmp_path, monkeypatch) -> None:
    """With a huge T the loss is the mean; with a small one it is larger, and the reported NLL stays a mean."""
    seen: list[float | None] = []

    def remember(detector: Detector, epoch: int) -> None:
        seen.append(detector.objective.tilt)

    first = {}
    for tilt in (None, 1e6, 0.05):
        detector = make_detector()
        objective = detector.objective
        training = TrainingConfig(1, 10, 1e-9, locations=locations, tilt=tilt)
        fit(detector, IMAGES, training, output=tmp_path / str(tilt), callbacks=[AfterEpoch(remember)], progress=False)
        assert detector.objective is objective
        first[tilt] = log(tmp_path / str(tilt))[0]
    assert seen == [None, 1e6, 0.05]
    assert first[1e6]["loss"] == pytest.approx(first[None]["loss"], abs=1e-4)
    assert first[0.05]["loss"] > first[None]["loss"] + 0.05
    assert first[0.05]["nll"] == pytest.approx(first[None]["nll"], abs=1e-4)


def test_tilt_takes_the_place_of_squashing() -> None:
    trained = []
    for squash in (False, True):
        detector = make_detector()
        detector.objective = replace(detector.objective, squash=squash)
        objective = detector.objective
        fit(detector, IMAGES, TrainingConfig(1, 4, tilt=0.05), progress=False)
        assert detector.objective is objective
        trained.append(detector.state_dict())
    assert all(torch.equal(x, trained[1][name]) for name, x in trained[0].items())
