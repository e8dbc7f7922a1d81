"""Gaussian blur, compared with a direct sum over the window in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semflow.errors import ShapeError
from semflow.functional import gaussian_blur, gaussian_kernel


def direct(maps, sigma):
    """Sum over the window, pixel by pixel, of maps that numpy has reflected."""
    radius = int(4 * sigma + 0.5)
    window = np.arange(-radius, radius + 1)
    weights = np.exp(-(window[:, None] ** 2 + window[None] ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    padded = np.pad(maps.double().numpy(), ((0, 0), (radius, radius), (radius, radius)), mode="reflect")
    found = np.zeros(maps.shape)
    for y in range(maps.shape[1]):
        for x in range(maps.shape[2]):
            found[:, y, x] = (padded[:, y : y + 2 * radius + 1, x : x + 2 * radius + 1] * weights).sum((1, 2))
    return torch.from_numpy(found)


@given(st.sampled_from([0.1, 0.3, 0.5, 1.0, 1.7, 4.0]), st.integers(17, 24), st.integers(17, 24), st.integers(0, 2**31))
@settings(deadline=None, max_examples=15)
def test_blur_is_the_sum_over_the_window(sigma, height, width, seed) -> None:
    maps = torch.randn(2, height, width, generator=torch.Generator().manual_seed(seed)) * 100
    found = gaussian_blur(maps, gaussian_kernel(sigma))
    torch.testing.assert_close(found.double(), direct(maps, sigma), rtol=1e-5, atol=1e-4)


def test_kernel_has_sum_one_and_the_size_of_four_deviations() -> None:
    assert [len(gaussian_kernel(sigma)) for sigma in (0.1, 0.5, 1.0, 4.0, 10.0)] == [1, 5, 9, 33, 81]
    for sigma in (0.1, 1.0, 4.0, 50.0):
        assert gaussian_kernel(sigma).double().sum().item() == pytest.approx(1, abs=1e-6)


def test_blur_of_one_value_is_that_value() -> None:
    for value in (0.0, -3.0, 1e30):
        maps = torch.full((1, 20, 20), value)
        torch.testing.assert_close(gaussian_blur(maps, gaussian_kernel(4.0)), maps)


def test_blur_of_maps_smaller_than_the_radius_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"^maps must have more than 16 rows and columns to blur, but got \(16, 40\)$"):
        gaussian_blur(torch.zeros(1, 16, 40), gaussian_kernel(4.0))
