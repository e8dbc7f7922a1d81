"""Significant regions of latents: scales, statistics and regions of interest."""

import math

import pytest
import torch

from semflow.detectors import Latents, significant_regions
from semflow.errors import ConfigError, ShapeError
from semflow.functional import region_significance
from semflow.nn import Statistics

ZERO = torch.zeros(2)


def drawn(*shape: int) -> torch.Tensor:
    z = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    z[0, :, 1 : shape[1] // 2, 1 : shape[2] // 2] *= 4
    return z


def test_scales_share_the_tests_and_are_enlarged():
    fine, coarse = drawn(8, 8, 12), drawn(32, 4, 6)
    found = significant_regions([Latents(z, ZERO, "sample", None) for z in (fine, coarse)], (16, 24))
    parts = [region_significance(z.square().sum(1), z.shape[1], maps=2) for z in (fine, coarse)]
    enlarged = [part.repeat_interleave(n, 1).repeat_interleave(n, 2) for part, n in zip(parts, (2, 4), strict=True)]
    torch.testing.assert_close(found, torch.maximum(*enlarged))
    assert (found[0] > 0).any()
    assert not (found[1] > 0).any()
    alone = region_significance(fine.square().sum(1), 8)
    inside = parts[0] > 0
    torch.testing.assert_close(alone[inside] - parts[0][inside], torch.full_like(parts[0][inside], math.log10(2)))


def test_statistics_give_mean_and_variance():
    z = drawn(8, 8, 8)
    variance, shift = torch.rand(2, 1, 8, 8) + 0.5, torch.randn(2, 1, 8, 8)
    latents = Latents(z * variance.sqrt() + shift, ZERO, "sample", Statistics(variance, normal_shift=shift))
    plain = Latents(z, ZERO, "sample", None)
    torch.testing.assert_close(*(significant_regions([x], (8, 8)) for x in (latents, plain)), rtol=1e-4, atol=1e-4)


def test_nothing_is_found_outside_of_the_region_of_interest():
    z = 10 * torch.ones(2, 8, 8, 8)
    cells = torch.zeros(2, 8, 8, dtype=torch.bool)
    cells[:, :, 4:] = True
    found = significant_regions([Latents(z, ZERO, "sample", None)], (8, 8), [cells])
    assert torch.equal(found > 0, cells)
    assert found.dtype == z.dtype
    assert significant_regions([Latents(z.double(), ZERO, "sample", None)], (8, 8)).dtype == torch.float64


def test_bad_input():
    latents = [Latents(torch.zeros(2, 8, 4, 4), ZERO, "sample", None)]
    with pytest.raises(ShapeError, match="latents and inside must have one entry per scale, but got 0 and 0"):
        significant_regions([], (8, 8))
    with pytest.raises(ShapeError, match="but got 1 and 2"):
        significant_regions(latents, (8, 8), [None, None])
    with pytest.raises(ConfigError, match="width must be at least 1"):
        significant_regions(latents, (8, 0))
