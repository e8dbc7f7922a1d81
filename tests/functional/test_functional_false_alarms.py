"""Regions of low NFA compared with all components of all level sets; the number of tests; false alarms on noise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from semflow.errors import ConfigError, ShapeError
from semflow.functional import region_significance


def log_tests(n: int) -> float:
    return math.log(sum(n * 0.316915 * 4.062570**r / r for r in range(1, n + 1)))


def brute_force(squares: np.ndarray, dof: float, maps: int) -> np.ndarray:
    """Find the components of every level set, and choose from the largest to the smallest."""
    regions = {}
    for level in np.unique(squares):
        labels, count = ndimage.label(squares >= level)
        for k in range(1, count + 1):
            region = frozenset(np.flatnonzero(labels == k))
            ratio = max(1.0, squares.ravel()[list(region)].min() / dof)
            log_p = -dof / 2 * (ratio - 1 - math.log(ratio))
            regions[region] = len(region) * log_p + log_tests(squares.size) + math.log(maps)
    found, taken = np.zeros(squares.size), set()
    for region, log_nfa in sorted(regions.items(), key=lambda pair: -len(pair[0])):
        within = [value for other, value in regions.items() if other < region]
        if not region & taken and all(log_nfa <= value for value in within):
            taken |= region
            found[list(region)] = max(0.0, -log_nfa / math.log(10))
    return found.reshape(squares.shape)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.5, 1, 7, 40]), st.integers(1, 3), st.booleans(),
    st.integers(0, 10**6),
)  # fmt: skip
def test_regions_are_those_of_all_level_sets(height, width, dof, maps, tied, seed):
    rng = np.random.default_rng(seed)
    squares = rng.chisquare(dof, (height, width)) * rng.choice([1, 3, 10, 50], (height, width))
    if tied:
        squares = np.round(squares / dof) * dof
    found = region_significance(torch.from_numpy(squares)[None], dof, maps)
    np.testing.assert_allclose(found[0].numpy(), brute_force(squares, dof, maps), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (2, 2), (3, 3), (3, 4)])
def test_there_are_at_least_as_many_tests_as_connected_sets(shape):
    n = math.prod(shape)
    masks = (np.arange(2**n)[:, None] >> np.arange(n) & 1).reshape(-1, *shape)
    sets = sum(ndimage.label(mask)[1] == 1 for mask in masks)
    assert sets <= math.exp(log_tests(n))


@pytest.mark.parametrize("dof", [1, 24])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 2), (4, 4), (16, 16)])
def test_noise_has_less_than_one_false_alarm_a_map(shape, dof):
    squares = np.random.default_rng(0).chisquare(dof, (600, *shape))
    marked = region_significance(torch.from_numpy(squares), dof).numpy() > 0
    assert np.mean([ndimage.label(mask)[1] for mask in marked]) <= 1
    assert math.prod(shape) < 256 or not marked.any()  # the bound is far from tight


def test_chernoff_bounds_the_tail():
    # The significance of a map of one location is -log10 (N P).
    squares = np.linspace(1, 400, 50)
    found = region_significance(torch.from_numpy(squares)[:, None, None], 24)[:, 0, 0].numpy()
    exact = -(log_tests(1) + stats.chi2.logsf(squares, 24)) / math.log(10)
    assert (found <= np.maximum(exact, 0) + 1e-12).all()
    assert found[-1] > 0.9 * exact[-1]


def test_extreme_squares():
    squares = torch.full((1, 6, 6), 1e30)
    squares[0, 0] = 0.0
    found = region_significance(squares, 3)
    assert torch.equal(found > 0, squares > 0)
    squares[0, 2:4, 2:4] = torch.inf  # nothing is less likely, so the region is these alone
    found = region_significance(squares, 3)
    assert torch.equal(found > 0, squares.isinf())
    assert not found[0, 0].signbit().any()
    assert region_significance(squares.half(), 3).dtype == torch.float32
    assert region_significance(squares.clamp(max=9).to(torch.int64), 3).dtype == torch.float32
    assert region_significance(squares[:0], 3).shape == (0, 6, 6)


def test_bad_input():
    with pytest.raises(ShapeError, match=r"squares must be maps"):
        region_significance(torch.ones(4, 4), 3)
    for bad in (-1.0, torch.nan):
        with pytest.raises(ShapeError, match="squares must be at least 0, but got negative values or NaN"):
            region_significance(torch.full((1, 2, 2), bad), 3)
    with pytest.raises(ConfigError, match="dof must be"):
        region_significance(torch.ones(1, 2, 2), 0)
    with pytest.raises(ConfigError, match="maps must be"):
        region_significance(torch.ones(1, 2, 2), 1, maps=0)
