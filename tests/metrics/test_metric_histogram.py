"""Metrics of histograms: bounds contain the exact metrics, and merging is exact."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semflow.errors import ConfigError, ShapeError
from semflow.metrics import HistogramAccumulator, pixel_metrics


def maps(seed: int, kind: str, count: int = 4, size: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, size, size), dtype=bool)
    for mask in masks[1:]:
        for _ in range(rng.integers(1, 4)):
            top, left = rng.integers(0, size - 4, 2)
            mask[top : top + rng.integers(1, 8), left : left + rng.integers(1, 8)] = True
    scores = rng.normal(size=masks.shape) + 1.2 * masks
    if kind == "near one":
        scores = 1 - np.exp(-np.abs(scores) - 4)
    elif kind == "wide":
        scores = np.sinh(6 * scores)
    elif kind == "tied":
        scores = np.round(scores * 2) / 2
    elif kind == "crowded":  # bins with tied and other pixels
        scores = 1 + 1e-6 * np.round(4 * scores)
    elif kind == "constant":
        scores = np.full_like(scores, -3.0)
    return scores.astype(np.float32), masks


@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from(["plain", "near one", "wide", "tied", "crowded", "constant"]),
    st.integers(10, 20),
    st.sampled_from([0.05, 0.3, 1.0]),
)
@settings(max_examples=60)
def test_bounds_contain_the_exact_metrics(seed, kind, bits, limit) -> None:
    scores, masks = maps(seed, kind)
    metrics = HistogramAccumulator(bits)
    metrics.update(scores, masks)
    found = metrics.compute(limit)
    for name, exact in pixel_metrics(scores, masks, limit)._asdict().items():
        value, low, high = getattr(found, name)
        assert low - 1e-12 <= exact <= high + 1e-12, name
        assert low - 1e-12 <= value <= high + 1e-12, name


@given(st.integers(0, 2**31 - 1), st.sampled_from([0.05, 0.3, 1.0]))
@settings(max_examples=30)
def test_histogram_is_exact_if_each_score_has_its_own_bin(seed, limit) -> None:
    """Multiples of 1/4 between -4 and 4 differ in the first ten bits after the exponent."""
    scores, masks = maps(seed, "plain")
    scores = np.clip(np.round(scores * 4) / 4, -4, 4).astype(np.float32)
    metrics = HistogramAccumulator(16)
    metrics.update(scores, masks)
    found = metrics.compute(limit)
    for name, exact in pixel_metrics(scores, masks, limit)._asdict().items():
        assert getattr(found, name).value == pytest.approx(exact, abs=1e-12), name


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=50))
def test_bins_have_the_order_of_the_scores(values) -> None:
    numbers = np.sort(np.array(values, dtype=np.float32))
    for bits in (10, 24):
        bins = HistogramAccumulator(bits)._bins(numbers)
        assert (np.diff(bins) >= 0).all()
        assert bins.min() >= 0
        assert bins.max() < 2**bits


def test_upper_bound_contains_ties_of_anomalous_pixels_within_a_bin() -> None:
    scores = np.float32([[2.0] * 10 + [1.0001] * 100 + [1.00005]])
    masks = np.array([[False] * 10 + [True] * 100 + [False]])
    metrics = HistogramAccumulator(20)
    metrics.update(scores, masks)
    assert metrics.compute().average_precision.high == pytest.approx(100 / 110)
    assert pixel_metrics(scores, masks).average_precision == pytest.approx(100 / 110)


def test_bounds_narrow_with_more_bits() -> None:
    scores, masks = maps(0, "plain", count=8, size=64)
    widths = []
    for bits in (10, 14, 18, 22):
        metrics = HistogramAccumulator(bits)
        metrics.update(scores, masks)
        widths.append([bounded.high - bounded.low for bounded in metrics.compute()])
    assert (np.diff(np.array(widths), axis=0) <= 1e-12).all()
    assert max(widths[-1]) < 1e-3
    assert min(widths[0]) > 1e-2


def test_merge_of_histograms_gives_the_metrics_of_all_data() -> None:
    scores, masks = maps(1, "wide")
    whole, first, second = (HistogramAccumulator(18) for _ in range(3))
    whole.update(torch.from_numpy(scores), torch.from_numpy(masks))
    first.update(scores[:1], masks[:1])
    second.update(scores[1:], masks[1:])
    first.merge([second])
    for a, b in zip(first.compute(), whole.compute(), strict=True):
        assert a == pytest.approx(b, abs=1e-14)
    first.reset()
    with pytest.raises(ShapeError, match="0 normal and 0 anomalous"):
        first.compute()


def test_histogram_rejects_invalid_input() -> None:
    with pytest.raises(ConfigError, match="bits must be 10 to 24, but got 30"):
        HistogramAccumulator(30)
    metrics = HistogramAccumulator(12)
    with pytest.raises(ConfigError, match=r"12 bits, but got HistogramAccumulator\(bits=16"):
        metrics.merge(HistogramAccumulator(16))
    metrics.update(np.zeros((1, 2, 2)), np.eye(2, dtype=bool)[None])
    with pytest.raises(ConfigError, match="fpr_limit"):
        metrics.compute(0.0)
    with pytest.raises(ShapeError, match="NaN"):
        metrics.update(np.full((1, 2, 2), np.nan), np.eye(2, dtype=bool)[None])
    assert repr(metrics) == "HistogramAccumulator(bits=12, 4 pixels)"
