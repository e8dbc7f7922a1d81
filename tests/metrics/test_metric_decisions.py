"""F1 of decisions and the calibration error of p-values compared with brute force."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semflow.detectors import conformal_p_values
from semflow.errors import ConfigError, ShapeError
from semflow.metrics import CalibrationAccumulator, F1Accumulator, calibration_error, f1, f1_max, f1_max_threshold

sklearn_metrics = pytest.importorskip("sklearn.metrics")


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30), st.booleans(), st.integers(0, 30))
def test_f1_equals_sklearn_for_any_division_into_batches(pairs, called, cut):
    decisions, labels = (np.array(column) for column in zip(*pairs, (called, True), strict=True))
    expected = pytest.approx(sklearn_metrics.f1_score(labels, decisions, zero_division=0), abs=1e-12)
    assert f1(torch.from_numpy(decisions), labels.astype(int)) == expected
    shards = [F1Accumulator(), F1Accumulator()]
    shards[0].update(decisions[:cut], labels[:cut])
    for one, label in zip(decisions[cut:], labels[cut:], strict=True):
        shards[1].update(one, label)
    total = F1Accumulator()
    total.merge(pickle.loads(pickle.dumps(shards)))
    assert total.compute() == expected
    assert len(pickle.dumps(total)) < 500
    total.update(decisions, labels)
    assert total.compute() == expected


def test_f1_at_its_best_threshold_is_f1_max():
    random = np.random.default_rng(0)
    labels = random.random(200) < 0.2
    scores = random.normal(size=200).round(1) + labels
    assert f1(scores >= f1_max_threshold(scores, labels), labels) == pytest.approx(f1_max(scores, labels), abs=1e-12)


def test_f1_rejects_invalid_input():
    with pytest.raises(ShapeError, match="labels must have at least one anomalous"):
        f1([1, 0], [0, 0])
    with pytest.raises(ShapeError, match="labels must have at least one anomalous"):
        F1Accumulator().compute()
    with pytest.raises(ShapeError, match="decisions must have only 0"):
        f1([0.5, 0.2], [0, 1])
    with pytest.raises(ShapeError, match="decisions and labels must have one shape"):
        f1([1, 0], [1])
    with pytest.raises(ConfigError, match="others must be of class F1Accumulator"):
        F1Accumulator().merge(CalibrationAccumulator())


def reference(p):
    """Evaluate the definitions on a fine grid and just before and at every p-value."""
    p = np.sort(np.asarray(p, float))
    at, before = (np.searchsorted(p, p, side=side) / len(p) - p for side in ("right", "left"))
    grid = (np.arange(200_000) + 0.5) / 200_000
    gap = np.abs(np.searchsorted(p, grid, side="right") / len(p) - grid)
    return gap.mean(), max(abs(at).max(), abs(before).max()), max(0.0, at.max())


probabilities = st.one_of(st.floats(0, 1), st.integers(0, 5).map(lambda k: k / 5))


@given(st.lists(probabilities, min_size=1, max_size=20))
def test_calibration_error_equals_its_definition(p_values):
    found, expected = calibration_error(p_values), reference(p_values)
    assert found.error == pytest.approx(expected[0], abs=2e-5)  # of the grid
    assert found[1:] == pytest.approx(expected[1:], abs=1e-12)
    assert 0 <= found.error <= found.distance <= 1
    assert found.excess <= found.distance
    shards = [CalibrationAccumulator(), CalibrationAccumulator()]
    for number, one in enumerate(p_values):
        shards[number % 2].update(torch.tensor([one], dtype=torch.float64))
    shards[1].merge(pickle.loads(pickle.dumps(shards[0])))
    assert shards[1].compute() == found


def test_calibration_error_of_known_distributions():
    even = (np.arange(1000) + 0.5) / 1000
    assert calibration_error(even) == pytest.approx((1 / 4000, 1 / 2000, 1 / 2000), abs=1e-12)
    assert calibration_error([1.0]) == pytest.approx((0.5, 1.0, 0.0), abs=1e-12)  # never an alarm
    assert calibration_error([0.0]) == pytest.approx((0.5, 1.0, 1.0), abs=1e-12)
    assert calibration_error(even**2).excess == pytest.approx(0.25, abs=1e-3)  # F = sqrt(t)
    assert calibration_error(np.sqrt(even)).excess == pytest.approx(0.0, abs=1e-3)


def test_conformal_p_values_have_the_error_of_chance():
    generator = torch.Generator().manual_seed(0)
    good, new = torch.randn(999, generator=generator), torch.randn(4000, generator=generator)
    assert calibration_error(conformal_p_values(good, new)).distance < 0.05
    assert calibration_error(conformal_p_values(good, new + 0.5)).excess > 0.15


def test_calibration_error_rejects_invalid_input():
    for wrong, found in (([], "none"), ([-0.1, 0.5], "values from -0.1 to 0.5"), ([0.1, 2.0], "values from 0.1 to 2")):
        with pytest.raises(ShapeError, match=rf"p_values must be in \[0, 1\], at least one, but got {found}"):
            calibration_error(wrong)
    with pytest.raises(ShapeError, match="NaN"):
        CalibrationAccumulator().update([0.1, float("nan")])
    with pytest.raises(ShapeError, match="but got none"):
        CalibrationAccumulator().compute()
