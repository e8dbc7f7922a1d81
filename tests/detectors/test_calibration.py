"""Calibration of a detector: held-out images, decisions, and files."""

import math

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy import stats

import semflow
from helpers.small_detector import make_images
from semflow.detectors import conformal_p_values
from semflow.errors import CheckpointError, ConfigError, ShapeError
from semflow.training import (
    automatic_count,
    calibrate,
    evaluate,
    fit,
    hold_out,
    results,
    summarize,
)
from semflow.training.checkpoint import load_into, read_config, save_model


def stack(images):
    return torch.stack([s.image for s in images])


def perturb(detector, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in detector.trainable():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return detector


def test_decisions_follow_the_conformal_rule(build, images) -> None:
    detector = perturb(build())
    detector.fit_score([stack(images)])
    assert detector.predict(stack(images))[3:] == (None, None, None)
    held, new = make_images(19, seed=1), make_images(30, seed=2)
    plain = detector.predict(stack(new))
    known = detector.predict(stack(held))
    assert calibrate(detector, held, 0.1, batch_size=4) is detector
    prediction = detector.predict(stack(new))
    assert torch.equal(prediction.score, plain.score)
    torch.testing.assert_close(detector.calibration.scores, known.score.sort().values, rtol=1e-5, atol=1e-6)
    assert torch.equal(prediction.p_value, conformal_p_values(detector.calibration.scores, prediction.score))
    assert torch.equal(prediction.is_anomalous, prediction.p_value <= 0.1)
    top = known.anomaly_map.flatten(1).amax(1).sort().values[17]  # the 18th smallest of 19
    assert torch.equal(prediction.mask, prediction.anomaly_map > detector.calibration.thresholds[1])
    torch.testing.assert_close(detector.calibration.thresholds[1], top, rtol=1e-5, atol=1e-6)
    alone = detector.predict(stack(new[3:4]))
    assert alone.p_value[0] == prediction.p_value[3]


@pytest.mark.parametrize(("count", "rate"), [(9, 0.1), (41, 0.05), (99, 0.01)])
def test_false_alarm_rate_of_a_detector_on_exchangeable_images(build, count, rate) -> None:
    """Shuffle images of one kind many times, so that the rank of the last one is exactly uniform."""
    detector = perturb(build())
    detector.fit_score([stack(make_images(20, seed=5))])
    prediction = detector.predict(stack(make_images(120, seed=6)))
    peaks = prediction.anomaly_map.flatten(1).amax(1)
    assert len(prediction.score.unique()) == len(peaks.unique()) == 120
    trials, generator = 4000, torch.Generator().manual_seed(0)
    dealt = torch.rand(trials, 120, generator=generator).argsort(1)[:, : count + 1]
    exact = math.floor(rate * (count + 1) + 1e-9) / (count + 1)
    for values in (prediction.score[dealt], peaks[dealt]):
        alarms = int((conformal_p_values(values[:, :count], values[:, count:]) <= rate).sum())
        assert stats.binom.ppf(1e-6, trials, exact) <= alarms <= stats.binom.ppf(1 - 1e-6, trials, exact)


def test_too_few_calibration_images_raise_and_change_nothing(build, images) -> None:
    detector = build()
    with pytest.raises(ConfigError, match=r"at least 99 images for .* 0\.01, but got 10; .* at least 0\.091$"):
        calibrate(detector, images, 0.01)
    with pytest.raises(ConfigError, match=r"at least 9 images for false_alarm_rate 0\.1, but got 8"):
        calibrate(detector, images[:8])
    with pytest.raises(ShapeError, match=r"must both be \(n,\)"):
        detector.calibrate([])
    assert detector.calibration.count == 0
    assert detector.false_alarm_rate is None
    with pytest.raises(ConfigError, match="calibrate it first"):
        detector.calibration.set_rate(0.1)
    calibrate(detector, images)
    before = detector.calibration.state_dict()
    with pytest.raises(ConfigError, match="at least 19 images"):
        detector.calibration.set_rate(0.05)
    assert detector.false_alarm_rate == 0.1
    assert all(torch.equal(x, before[name]) for name, x in detector.calibration.state_dict().items())


def test_fit_score_clears_the_calibration(build, images) -> None:
    detector = build()
    calibrate(detector, images)
    detector.fit_score([stack(images)])
    assert detector.predict(stack(images)).p_value is None


@pytest.mark.parametrize("count", [10, 30])
def test_calibration_is_saved_with_the_model(build, count, tmp_path) -> None:
    detector = perturb(build())
    calibrate(detector, make_images(count, seed=1), 1 / 10)
    save_model(detector, tmp_path)
    again = load_into(build(seed=3), tmp_path).eval()
    assert again.calibration.count == count
    assert again.false_alarm_rate == 0.1
    new = stack(make_images(5, seed=2))
    for a, b in zip(detector.predict(new), again.predict(new), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else len(a) == len(b)
    again = build(seed=4)
    again.load_state_dict(detector.state_dict())
    assert torch.equal(again.calibration.thresholds, detector.calibration.thresholds)
    # A model without calibration removes an existing one.
    save_model(build(seed=3), tmp_path)
    assert load_into(again, tmp_path).calibration.count == 0
    assert not [name for name in build().state_dict() if name.startswith("calibration")]
    assert again.predict(new).p_value is None


def test_calibration_survives_a_change_of_dtype(build, images) -> None:
    detector = build()
    calibrate(detector, images)
    for cast in (detector.double(), detector.float()):
        assert cast.false_alarm_rate == 0.1
        assert cast.calibration.count == 10


BROKEN = {
    "rank": {"scores": torch.zeros(10, 1)},
    "length": {"maxima": torch.zeros(9)},
    "type": {"scores": torch.zeros(10, dtype=torch.int64)},
    "not finite": {"scores": torch.full((10,), math.nan)},
    "rate shape": {"rate": torch.tensor([1])},
    "rate zero": {"rate": torch.tensor([1, 0])},
    "rate above one": {"rate": torch.tensor([3, 2])},
    "rate negative": {"rate": torch.tensor([-1, 10])},
    "rate type": {"rate": torch.tensor([0.1, 1.0])},
    "rate too fine": {"rate": torch.tensor([1, 100])},
    "missing": {"maxima": None},
}


@pytest.mark.parametrize("what", BROKEN)
def test_load_rejects_invalid_calibrations(build, images, what, tmp_path) -> None:
    detector = build()
    calibrate(detector, images)
    path = save_model(detector, tmp_path)
    tensors = safetensors.torch.load_file(path)
    for name, value in BROKEN[what].items():
        tensors.pop(f"calibration.{name}")
        if value is not None:
            tensors[f"calibration.{name}"] = value
    safetensors.torch.save_file(tensors, path, {"semflow": '{"format": 1}'})
    with pytest.raises(CheckpointError, match="calibrat") as error:
        load_into(build(), tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="calibrat"):
        build().load_state_dict(tensors, strict=False)


def test_hold_out_splits_the_images() -> None:
    data = list(range(60))
    train, held = hold_out(data, automatic_count(60), seed=3)
    assert (len(train), len(held)) == (48, 12)
    assert sorted([*train, *held]) == data
    assert list(train) == sorted(train)
    assert list(hold_out(data, 12, seed=3)[1]) == list(held) == list(hold_out(data, 0.2, seed=3)[1])
    assert list(hold_out(data, 12, seed=4)[1]) != list(held)
    assert hold_out(data, None) == (data, None)
    assert hold_out(data, 0) == (data, None)
    assert hold_out(data, [1, 2]) == (data, [1, 2])
    for numpys, plain in ((np.int64(12), 12), (np.float32(0.2), 0.2), (np.float64(0.2), 0.2)):
        assert list(hold_out(data, numpys, seed=3)[1]) == list(hold_out(data, plain, seed=3)[1])
    for wrong in (60, -1, 1.5, -0.1, float("nan"), True):
        with pytest.raises(ConfigError, match="calibration must be"):
            hold_out(data, wrong)
    with pytest.raises(ConfigError, match="calibration must hold"):
        hold_out(data, [])


def test_hold_out_draws_images_uniformly() -> None:
    counts = torch.zeros(20)
    for seed in range(500):
        counts[list(hold_out(range(20), 5, seed)[1])] += 1
    assert stats.chisquare(counts.numpy()).pvalue > 1e-6


def test_fit_holds_out_and_calibrates(build, tmp_path) -> None:
    images = make_images(24)
    detector = fit(build(), images, calibration=10, epochs=1, output=tmp_path / "run", progress=False)
    assert detector.calibration.count == 10
    assert read_config(tmp_path / "run")["images"] == 14
    train, held = hold_out(images, 10)
    other = fit(build(), train, epochs=1, progress=False)
    calibrate(other, held, batch_size=4)
    assert torch.equal(other.calibration.scores, detector.calibration.scores)
    given = fit(build(), train, epochs=1, progress=False, calibration=held, false_alarm_rate=0.2)
    assert torch.equal(given.calibration.scores, detector.calibration.scores)
    assert given.false_alarm_rate == 0.2
    resumed = fit(build(), images, calibration=10, epochs=1, output=tmp_path / "run", resume=True, progress=False)
    assert torch.equal(resumed.calibration.maxima, detector.calibration.maxima)
    with pytest.raises(CheckpointError, match="images = 14, but got 13"):
        fit(build(), images, calibration=11, epochs=1, output=tmp_path / "run", resume=True, progress=False)
    with pytest.raises(ConfigError, match="at least 99 images"):  # before training
        fit(build(), images, calibration=10, false_alarm_rate=0.01, output=tmp_path / "no", progress=False)
    assert not (tmp_path / "no").exists()
    assert fit(build(), images, epochs=1, progress=False).calibration.count == 0
    assert semflow.calibrate is calibrate


def test_evaluation_reports_the_rates_of_decisions(build) -> None:
    detector = perturb(build())
    detector.fit_score([stack(make_images(10))])
    test = make_images(12, seed=3)
    for i in (2, 5, 7, 8):
        mask = torch.zeros(32, 32, dtype=torch.bool)
        mask[8:20, 4 : 10 + i] = True
        test[i] = test[i]._replace(
            label=1, anomaly_mask=mask, image=torch.where(mask, 1 - test[i].image, test[i].image)
        )
    plain = evaluate(detector, test)
    assert list(plain) == ["image_auroc", "pixel_auroc", "aupro", "image_f1_max"]
    calibrate(detector, make_images(9, seed=4), 0.4)
    found = evaluate(detector, test, batch_size=5)
    assert {name: found[name] for name in plain} == pytest.approx(plain, abs=1e-6)
    prediction = detector.predict(stack(test))
    labels = torch.tensor([s.label for s in test])
    decisions = prediction.is_anomalous
    assert found["false_alarm_rate"] == pytest.approx(decisions[labels == 0].double().mean().item())
    assert found["detection_rate"] == pytest.approx(decisions[labels == 1].double().mean().item())
    marked = prediction.mask.flatten(1).any(1)[labels == 0].double().mean().item()
    assert found["mask_false_alarm_rate"] == pytest.approx(marked)
    listed = list(results(detector, test, batch_size=5))
    assert [r.is_anomalous for r in listed] == decisions.tolist()
    assert [r.p_value for r in listed] == prediction.p_value.tolist()
    normal = [r for r in listed if r.sample.label == 0]
    with pytest.raises(ShapeError):
        summarize(normal)
