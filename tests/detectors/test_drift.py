"""The test of drift: uniform p-values, a capital that no bet raises on average, few false warnings, and files."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from semflow.detectors import DriftTest, conformal_p_values
from semflow.errors import CheckpointError, ConfigError, DataError, ShapeError


def predicted(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return conformal_p_values(torch.from_numpy(calibration), torch.from_numpy(scores)).numpy()


class Recording(DriftTest):
    """Keeps the p-values that are bet on."""

    def _bet(self, p_values) -> None:
        self.found = np.concatenate([getattr(self, "found", np.empty(0)), p_values])
        super()._bet(p_values)


@given(st.lists(st.floats(0, 1), max_size=30))
@settings(max_examples=50, deadline=None)
def test_no_bet_changes_the_expected_capital(past) -> None:
    """Gauss-Legendre quadrature over the next p-value, which is uniform, is exact for bets that are polynomials."""
    points, weights = np.polynomial.legendre.leggauss(4)
    test = DriftTest(99, 0.1)
    test._bet(np.array(past))
    test._scores = np.zeros(len(past))
    before, capital, found = test.evidence, test._capital, []
    for p in (points + 1) / 2:
        test._capital = capital
        test._bet(np.array([p]))
        assert (test._capital >= 0).all()
        found.append(test.evidence)
    assert np.dot(weights / 2, found) == pytest.approx(before, rel=1e-12)


@pytest.mark.parametrize("digits", [None, 0])
@pytest.mark.parametrize(("images", "rate", "cross"), [(10, 0.1, False), (50, 0.05, False), (10, 0.1, True)])
def test_p_values_of_what_passes_are_uniform_and_independent(images, rate, cross, digits) -> None:
    """With ties of new scores too, which are as frequent as can be without ties with the calibration."""
    rng, rows = np.random.default_rng(images), []
    for seed in range(400):
        calibration, new = rng.standard_normal(images), rng.standard_normal(40)
        new = new if digits is None else np.where(rng.random(40) < 0.3, new[0], new)
        test = Recording(images, rate, cross=cross, seed=seed)
        test.update(new, predicted(calibration, new))
        rows.append(test.found[:6] if digits is None else test.found[-1:])
    kept = np.array([row for row in rows if len(row) == len(rows[0])])
    if digits is None:
        assert stats.kstest(kept.flatten(), "uniform").pvalue > 1e-3
        table, *_ = np.histogram2d(kept[:, :-1].flatten(), kept[:, 1:].flatten(), 4, [(0, 1), (0, 1)])
        assert stats.chisquare(table.flatten()).pvalue > 1e-3
    else:
        assert stats.kstest(kept.flatten(), "uniform").pvalue > 1e-6


@pytest.mark.parametrize(("images", "rate", "cross"), [(10, 0.1, False), (50, 0.05, False), (50, 0.05, True)])
def test_false_warnings_are_as_rare_as_promised(images, rate, cross) -> None:
    """Over many calibrations. Those of a cross-conformal one may have other scores than new images."""
    rng, delta, trials, warned = np.random.default_rng(0), 0.2, 200, 0
    for seed in range(trials):
        calibration, new = np.exp(rng.standard_normal(images) + 0.3 * cross), np.exp(rng.standard_normal(400))
        warned += DriftTest(images, rate, delta, cross=cross, seed=seed).update(new, predicted(calibration, new))
    assert 0 < warned <= stats.binom.ppf(1 - 1e-4, trials, delta)


@pytest.mark.parametrize("shift", [-2.0, 2.0])
@pytest.mark.parametrize(("images", "before"), [(50, 0), (50, 1000), (10, 100)])
def test_drift_is_found_soon_after_it_begins(images, before, shift) -> None:
    rng, delays, warned = np.random.default_rng(1), [], 0
    for _ in range(10):
        calibration = rng.standard_normal(images)
        test = DriftTest(images, 0.1)
        old, new = rng.standard_normal(before), rng.standard_normal(400) + shift
        assert not test.update(old, predicted(calibration, old))
        start = test.count
        for at in range(0, 400, 5):
            if test.update(new[at : at + 5], predicted(calibration, new[at : at + 5])):
                break
        delays.append(test.count - start)
        warned += test.warned
    assert warned >= (10 if images > 10 else 8)  # with 10, few of the new images may pass
    assert np.median(delays) <= 40


@given(sizes=st.lists(st.integers(1, 200), min_size=1, max_size=5), cross=st.booleans())
@settings(max_examples=20, deadline=None)
def test_updates_may_be_divided_and_interrupted(sizes, cross, tmp_path_factory) -> None:
    file = tmp_path_factory.mktemp("drift") / "test.drift"
    rng, total = np.random.default_rng(len(sizes)), sum(sizes)
    calibration, new = rng.random(30), np.round(rng.random(total), 2)
    p, names = predicted(calibration, new), [f"{i}.png" for i in range(total)]
    whole, parts = DriftTest(30, 0.1, cross=cross), DriftTest(30, 0.1, cross=cross)
    whole.update(new, p, names)
    for stop, size in zip(np.cumsum(sizes), sizes, strict=True):
        # Images from the start again, as of a folder that grows.
        part = slice(0 if size % 2 else stop - size, stop)
        parts.update(new[part], p[part], names[part])
        parts.save(file)
        parts = DriftTest.load(file)
    assert (parts.evidence, parts.highest, parts.count) == pytest.approx((whole.evidence, whole.highest, whole.count))
    assert (parts.images, parts.false_alarm_rate, parts.delta, parts.cross) == (30, 0.1, 0.01, cross)


def test_many_images_are_no_slower_and_do_not_overflow() -> None:
    rng, calibration = np.random.default_rng(0), np.linspace(0, 1, 99)
    rising = np.concatenate([rng.random(500), np.linspace(0.5, 0.9, 8000)])
    test = DriftTest(99, 0.05)
    assert test.update(rising, predicted(calibration, rising))
    assert np.isfinite(test.evidence)
    assert np.isfinite(test.highest)


def test_anomalous_and_unusable_scores_are_left_out() -> None:
    calibration = np.arange(19.0)
    test = DriftTest(19, 0.1)
    scores = np.array([3.0, 17.5, 18.5, 40.0, np.nan, np.inf, 16.5])
    p = predicted(calibration, scores)
    test.update(scores, p)
    assert test.count == 2  # 3 and 16.5: 17.5 is at rank 2 of 20
    assert np.array_equal(p > 0.1, [True, False, False, False, False, False, True])


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"images": 0}, ConfigError, "images must be at least 1"),
        ({"delta": 0.0}, ConfigError, "delta must be between 0 and 1"),
        ({"false_alarm_rate": 0.01}, ConfigError, "at least 99 images"),
        ({"false_alarm_rate": 1.5}, ConfigError, "false_alarm_rate must be between 0 and 1"),
    ],
)
def test_wrong_settings_are_named(wrong, error, message) -> None:
    with pytest.raises(error, match=message):
        DriftTest(**{"images": 50, "false_alarm_rate": 0.05, **wrong})


def test_wrong_shapes_and_files_are_named(tmp_path) -> None:
    test = DriftTest(50, 0.05)
    for scores, names in ((np.zeros(3), None), (np.zeros((2, 2)), None), (np.zeros(2), ["a"])):
        with pytest.raises(ShapeError, match=r"must both be \(B,\)"):
            test.update(scores, np.ones(2), names)
    file = tmp_path / "a.drift"
    with pytest.raises(CheckpointError, match="but got none"):
        DriftTest.load(file)
    for content in (b"", b"{}", bytes(100)):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="must be a safetensors file"):
            DriftTest.load(file)
    test.save(file)
    assert DriftTest.load(file).count == 0
    test.update(np.array([0.1]), np.array([0.5]))
    test.save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-9] + bytes(9))
    with pytest.raises(CheckpointError, match="damaged"):
        DriftTest.load(file)
    file.write_bytes(whole.replace(b'format\\": 1', b'format\\": 7'))
    with pytest.raises(CheckpointError, match="must be a drift test of format 1, but got 7; name a new file"):
        DriftTest.load(file)
    with pytest.raises(DataError, match="must be writable"):
        test.save(tmp_path / "none" / "a.drift")
