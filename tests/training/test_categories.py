"""One detector for several categories: calibration, hold-out and metrics by category."""

import copy
from collections.abc import Sequence
from statistics import fmean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.recipe_cases import images, small, stack
from semflow.data import CheckedSamples, Sample
from semflow.detectors import Calibration, Detector, conformal_p_values, conformal_threshold
from semflow.errors import CheckpointError, ConfigError
from semflow.recipes import load
from semflow.training import TrainingConfig, calibrate, evaluate, evaluate_categories, fit, hold_out, results
from semflow.training.categories import categories_of
from semflow.training.checkpoint import load_into, read_config, save_model
from semflow.training.crossing import Crossing

QUIET = {"progress": False}


class Parts(list):
    """Samples with the category of each."""

    def __init__(self, samples: Sequence[Sample], categories: Sequence[str]) -> None:
        super().__init__(samples)
        self.categories = tuple(categories)


def parts(seed: int = 0, **counts: int) -> Parts:
    """Return images of categories of different brightness."""
    samples, names = [], []
    for number, (name, count) in enumerate(counts.items()):
        for sample in images(count, seed=10 * seed + number):
            samples.append(sample._replace(image=sample.image * (1 - 0.4 * number), path=f"{name}/{sample.path}"))
            names.append(name)
    return Parts(samples, names)


def test_each_category_decides_by_its_own_images() -> None:
    detector = fit(small("patchcore"), parts(screw=10, nut=12), **QUIET)
    held = parts(1, nut=19, screw=25)  # in another order
    assert calibrate(detector, held, 0.1) is detector
    assert detector.decides_for == ("screw", "nut")
    new = stack(parts(2, screw=5, nut=5))
    known = detector.predict(stack(held))
    scores = {"nut": known.score[:19], "screw": known.score[19:], None: known.score}
    maxima = {"nut": known.anomaly_map[:19], "screw": known.anomaly_map[19:], None: known.anomaly_map}
    for name in ("nut", "screw", None):
        detector.set_category(name)
        found = detector.predict(new)
        assert detector.calibration_images == len(scores[name])
        expected = conformal_p_values(scores[name], found.score)
        torch.testing.assert_close(found.p_value, expected)
        assert torch.equal(found.is_anomalous, found.p_value <= 0.1)
        threshold = conformal_threshold(maxima[name].flatten(1).amax(1), 0.1)
        torch.testing.assert_close(detector.calibration.thresholds[1], threshold)
    detector.calibration.set_rate(0.2)
    assert detector.calibration.counts.tolist() == [25, 19]
    detector.set_category("nut")
    detector.calibration.set_rate(0.3)  # keeps the choice
    torch.testing.assert_close(detector.calibration.thresholds[0], conformal_threshold(scores["nut"], 0.3))
    assert copy.deepcopy(detector).calibration_images == 19
    with pytest.raises(ConfigError, match="category must be one of screw, nut, but got 'bolt'"):
        detector.set_category("bolt")
    calibrate(detector, list(held), 0.1)  # without categories
    assert (detector.decides_for, detector.calibration_images) == ((), 44)
    with pytest.raises(ConfigError, match="category must be None without categories, but got 'nut'"):
        detector.set_category("nut")
    detector.set_category(None)


@settings(max_examples=40)
@given(data=st.data(), rate=st.sampled_from([0.1, 0.2, 0.37]))
def test_thresholds_are_those_of_each_category_alone(data: st.DataObject, rate: float) -> None:
    counts = data.draw(st.lists(st.integers(9, 15), min_size=1, max_size=4))
    groups = data.draw(st.permutations([k for k, count in enumerate(counts) for _ in range(count)]))
    values = torch.tensor(data.draw(st.lists(st.floats(-9, 9, width=32), min_size=len(groups), max_size=len(groups))))
    both, new = Calibration(), torch.linspace(-10, 10, 41)
    both.fit(values, -values, rate, groups)
    restored = Calibration()
    restored.load_state_dict(both.state_dict())
    for calibration in (both, restored):
        for number in (*range(len(counts)), None):
            own = values if number is None else values[torch.tensor(groups) == number]
            alone = Calibration()
            alone.fit(own, -own, rate)
            calibration.choose(number)
            maps = new[:, None, None].expand(-1, 2, 2)
            for a, b in zip(calibration(new, maps), alone(new, maps), strict=True):
                assert torch.equal(a, b)
            assert calibration.count == len(own)


def test_too_few_images_of_a_category_are_refused_before_work() -> None:
    detector = small("patchcore")
    for calibration, message in (
        (8, "must have at least 9 images of screw for false_alarm_rate 0.1, but got 8"),
        (0.5, "must have at least 9 images of screw for false_alarm_rate 0.1, but got 5"),
        (10, "must be a fraction below 1 or a number of images of screw below 10, but got 10"),
        (parts(1, screw=9, bolt=9), "must be those of the model, screw, nut, but got screw, bolt"),
        (parts(1, screw=9, nut=8), "must have at least 9 images of nut"),
    ):
        with pytest.raises(ConfigError, match=message):
            fit(detector, parts(screw=10, nut=30), calibration=calibration, **QUIET)
    with pytest.raises(ConfigError, match=r"at least 19 images of screw for false_alarm_rate 0\.05, but got 10"):
        fit(detector, parts(screw=10, nut=30), calibration="cross", false_alarm_rate=0.05, **QUIET)
    fit(detector, parts(screw=10, nut=10), **QUIET)
    with pytest.raises(ConfigError, match="must be those of the model, screw, nut, but got screw"):
        calibrate(detector, parts(1, screw=19))
    assert not detector.calibration.count


def test_hold_out_takes_as_many_of_each_category() -> None:
    dataset = CheckedSamples(parts(screw=20, nut=45))
    for count, expected in ((9, (9, 9)), (0.2, (4, 9))):
        train, held = hold_out(dataset, count, seed=3)
        names = categories_of(held)
        assert (names.count("screw"), names.count("nut")) == expected
        assert len(train) + len(held) == 65
        assert sorted(train.indices + held.indices) == list(range(65))
        alone = hold_out(parts(screw=20), count, seed=3)[1]  # the images that a model of this category holds out
        assert [k for k in held.indices if k < 20] == alone.indices
    assert hold_out(dataset, 0)[1] is None


def test_folds_have_a_fifth_of_each_category() -> None:
    dataset = parts(screw=11, nut=25)
    crossing = Crossing(small("patchcore"), dataset, TrainingConfig(), fit)
    folds = crossing.folds()
    assert sorted(k for fold in folds for k in fold) == list(range(36))
    for fold in folds:
        names = [dataset.categories[k] for k in fold]
        assert (names.count("screw") in (2, 3), names.count("nut")) == (True, 5)


@pytest.mark.parametrize("name", ["patchcore", "padim"])
def test_cross_conformal_calibration_by_category(name: str) -> None:
    dataset = parts(screw=10, nut=12)
    detector = fit(small(name), dataset, calibration="cross", **QUIET)
    assert detector.calibration.counts.tolist() == [10, 12]
    assert detector.provenance.calibration == "cross"
    detector.set_category("nut")
    assert detector.calibration_images == 12


def test_run_keeps_its_categories(tmp_path) -> None:
    dataset = parts(screw=20, nut=22)
    detector = fit(small("patchcore"), dataset, calibration=9, output=tmp_path / "run", **QUIET)
    assert read_config(tmp_path / "run")["categories"] == ["screw", "nut"]
    loaded = load(tmp_path / "run", device="cpu")
    assert loaded.decides_for == ("screw", "nut")
    for name in ("screw", None):
        for model in (detector, loaded):
            model.set_category(name)
        assert torch.equal(detector.predict(stack(dataset)).p_value, loaded.predict(stack(dataset)).p_value)
    for other in (parts(screw=20, bolt=22), Parts(list(dataset), ["screw"] * 42), list(dataset)):
        with pytest.raises(CheckpointError, match=r"must be resumed with categories = \['screw', 'nut'\], but got"):
            fit(small("patchcore"), other, calibration=9, output=tmp_path / "run", resume=True, **QUIET)
    again = fit(small("patchcore"), dataset, calibration=9, output=tmp_path / "run", resume=True, **QUIET)
    assert again.decides_for == ("screw", "nut")
    calibrate(loaded, list(parts(1, screw=19)))
    save_model(loaded, tmp_path / "run")
    assert load_into(small("patchcore"), tmp_path / "run").decides_for == ()


@pytest.mark.parametrize("counts", [[9, 8], [18], [9, 9, 0], [9.0, 9.0]])
def test_damaged_counts_are_refused(tmp_path, counts) -> None:
    detector = fit(small("patchcore"), parts(screw=18, nut=18), calibration=9, output=tmp_path / "run", **QUIET)
    detector.calibration.counts = torch.tensor(counts)
    save_model(detector, tmp_path / "run")
    with pytest.raises(CheckpointError, match="calibrate the model again"):
        load_into(small("patchcore"), tmp_path / "run")


def labeled(seed: int, **counts: int) -> Parts:
    made = parts(seed, **counts)
    for k, sample in enumerate(made):
        mask = torch.zeros(sample.image.shape[1:], dtype=torch.bool)
        if k % 2:
            mask[4:12, 4:12] = True
            sample.image[:, 4:12, 4:12] = 1 - sample.image[:, 4:12, 4:12]
        made[k] = sample._replace(label=k % 2, anomaly_mask=mask)
    return made


def alarms(detector: Detector, samples: Sequence[Sample]) -> list[bool]:
    return [bool(result.is_anomalous) for result in results(detector, samples)]


def test_evaluate_is_the_mean_of_the_categories() -> None:
    detector = fit(small("patchcore"), parts(screw=19, nut=19), calibration="cross", **QUIET)
    tests = labeled(4, screw=8, nut=6)
    each = evaluate_categories(detector, tests, metrics=["aupro@0.05", "class_f1"])
    assert list(each) == ["screw", "nut"]
    mean = evaluate(detector, tests, metrics=["aupro@0.05", "class_f1"])
    for name, value in mean.items():
        assert value == pytest.approx(fmean(found[name] for found in each.values()))
    assert list(mean) == list(each["nut"])
    start = 0
    for name, count in (("screw", 8), ("nut", 6)):
        own = list(tests[start : start + count])
        start += count
        detector.set_category(name)
        assert evaluate(detector, own, metrics=["aupro@0.05", "class_f1"]) == each[name]
        normal = [alarm for alarm, sample in zip(alarms(detector, own), own, strict=True) if sample.label == 0]
        assert each[name]["false_alarm_rate"] == fmean(normal)
    assert detector.calibration_images == 19
    evaluate(detector, tests)
    assert detector.calibration_images == 19  # of the last category, as before
    bare = fit(small("patchcore"), list(parts(screw=10)), calibration="cross", **QUIET)  # knows no category
    assert evaluate_categories(bare, tests)["nut"]["detection_rate"] is not None
    without = [sample._replace(anomaly_mask=None) for sample in tests[8:]]
    mixed = Parts([*tests[:8], *without], tests.categories)
    assert evaluate_categories(bare, mixed)["screw"]["aupro"] is not None
    assert evaluate(bare, mixed)["aupro"] is None
    with pytest.raises(ConfigError, match="dataset must have categories, but got none in list; use evaluate"):
        evaluate_categories(bare, list(tests))


def test_a_score_that_never_varies_in_one_category_is_refused() -> None:
    detector = fit(small("patchcore"), parts(screw=10, nut=10), **QUIET)
    held = parts(1, screw=9, nut=9)
    held[9:] = [sample._replace(image=torch.zeros_like(sample.image)) for sample in held[9:]]
    with pytest.raises(Exception, match="scores of calibration images must be finite and differ"):
        calibrate(detector, held)
