"""PositionGaussian compared with torch's multivariate normal, and with fits to the other images."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal

from semflow.bases import PositionGaussian, PositionMoments
from semflow.errors import CheckpointError, ConfigError, DataError, ShapeError

GRID = (2, 3)
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def latents(count, channels=4, seed=0, mean=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, channels, *GRID, generator=generator, dtype=torch.float64)
    return mean + scale * x.cumsum(1)


def fitted(z, **options):
    base = PositionGaussian(**options).to(z.dtype)
    moments = base.accumulator()
    moments.update(z)
    base.fit(moments)
    return base


def truth(z, shrinkage=0.01):
    """One torch distribution for all locations, by covariances of numpy's definition."""
    rows = z.double().permute(2, 3, 1, 0)
    covariances = torch.stack([torch.cov(r) for r in rows.flatten(0, 1)]).view(*GRID, z.shape[1], z.shape[1])
    return MultivariateNormal(rows.mean(3), covariances + shrinkage * torch.eye(z.shape[1], dtype=torch.float64))


def expected_log_prob(z, of):
    return of.log_prob(z.double().permute(0, 2, 3, 1))


def mahalanobis(z, of):
    d = z.double().permute(0, 2, 3, 1) - of.mean
    return torch.einsum("bhwc,hwcd,bhwd->bhw", d, of.precision_matrix, d).sqrt()


@given(st.sampled_from([1, 2, 5, 33]), st.sampled_from([2, 3, 40, 100]), st.integers(0, 1000), st.floats(1e-3, 10))
@settings(max_examples=20, deadline=None)
def test_log_prob_is_that_of_torch(channels, count, seed, shrinkage):
    z, x = latents(count, channels, seed), latents(5, channels, seed + 1, scale=3)
    base = fitted(z, shrinkage=shrinkage)
    expected = expected_log_prob(x, truth(z, shrinkage))
    torch.testing.assert_close(base.log_prob(x), expected, **EXACT)
    torch.testing.assert_close(base.normality(x), expected / channels, **EXACT)


def test_distance_is_that_of_mahalanobis():
    z, x = latents(20), latents(3, seed=1)
    torch.testing.assert_close(fitted(z, form="distance").normality(x), -mahalanobis(x, truth(z)), **EXACT)
    assert not fitted(z, form="distance").is_density


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_exported_distances_are_those_of_mahalanobis(channels):
    class Distances(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def forward(self, z):
            return -self.base.normality(z)

    z, x = latents(20, channels), latents(3, channels, seed=1)
    program = torch.export.export(Distances(fitted(z, form="distance")), (x,))
    torch.testing.assert_close(program.module()(x), mahalanobis(x, truth(z)), **EXACT)


@pytest.mark.parametrize("count", [3, 4, 10, 70])
@pytest.mark.parametrize("form", ["density", "distance"])
def test_leaving_out_an_image_equals_a_fit_to_the_others(count, form):
    z = latents(count, mean=5, scale=2)
    base = fitted(z, form=form)
    found = base.normality(z, leave_out=torch.arange(count))
    for k in range(count):
        others = fitted(torch.cat([z[:k], z[k + 1 :]]), form=form)
        torch.testing.assert_close(found[k : k + 1], others.normality(z[k : k + 1]), rtol=1e-8, atol=1e-8)


def test_leaving_out_in_float32_is_close():
    z = latents(12, channels=20)
    found = fitted(z.float(), form="distance").normality(z.float(), leave_out=torch.arange(12))
    exact = fitted(z, form="distance").normality(z, leave_out=torch.arange(12))
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-4)


def test_leaving_out_is_of_the_current_fit():
    base, z, other = fitted(latents(9)), latents(9), latents(9, seed=3)
    base.normality(z, leave_out=torch.arange(9))
    moments = base.accumulator()
    moments.update(other)
    base.fit(moments)
    of = fitted(other).normality(other, leave_out=torch.arange(9))
    torch.testing.assert_close(base.normality(other, leave_out=torch.arange(9)), of, **EXACT)


# Moments


@pytest.mark.parametrize("sizes", [[70], [1] * 70, [8] * 8 + [6], [33, 37]])
def test_moments_do_not_depend_on_batches(sizes):
    z = latents(70)
    whole, parts = PositionMoments(), PositionMoments()
    whole.update(z)
    for part in z.split(sizes):
        parts.update(part)
    for one, other in zip(whole.result(), parts.result(), strict=True):
        assert torch.equal(one, other)
    assert parts.count == 70


@given(st.lists(st.integers(0, 50), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 1))
@settings(max_examples=20, deadline=None)
def test_merged_moments_are_those_of_all_images(sizes):
    z = latents(sum(sizes), mean=1e4)
    merged = PositionMoments()
    for part in z.split(sizes):
        moments = PositionMoments()
        moments.update(part)
        merged.merge(pickle.loads(pickle.dumps(moments)))
    mean, squares = merged.result()
    deviations = (z - z.mean(0)).permute(2, 3, 1, 0)
    torch.testing.assert_close(mean, z.mean(0).permute(1, 2, 0), rtol=1e-12, atol=0)
    torch.testing.assert_close(squares, deviations @ deviations.mT, rtol=1e-9, atol=1e-9)
    assert merged.count == len(z)


def test_single_images_merge_to_the_same_bits_as_batches():
    z = latents(50).float()
    whole, merged = PositionMoments(), PositionMoments()
    whole.update(z)
    for part in z.split(1):
        moments = PositionMoments()
        moments.update(part)
        merged.merge(moments)
    assert all(torch.equal(one, other) for one, other in zip(whole.result(), merged.result(), strict=True))


def test_large_means_do_not_cancel():
    z = latents(40, mean=1e6)
    of = truth(z - 1e6)
    base = fitted(z)
    torch.testing.assert_close(base.log_prob(z), expected_log_prob(z - 1e6, of), rtol=1e-6, atol=1e-6)


# Interface


def test_constant_latents_keep_the_shrinkage():
    z = torch.ones(4, 3, *GRID)
    base = fitted(z, form="distance")
    assert base.normality(z).eq(0).all()
    torch.testing.assert_close(base.normality(z + 0.1), torch.full((4, *GRID), -(3**0.5)))


def test_extreme_latents_are_finite():
    base = fitted(latents(10).float())
    assert base.log_prob(torch.full((1, 4, *GRID), 1e15)).isfinite().all()


def test_images_of_a_batch_are_independent():
    z = latents(10).float()
    base = fitted(z)
    torch.testing.assert_close(base.normality(z)[3:4], base.normality(z[3:4]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_latents_and_autocast_compute_in_float32(dtype):
    z = latents(10).to(dtype)
    base = fitted(latents(10).float())
    expected = base.log_prob(z.float())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(base.log_prob(z), expected, rtol=0, atol=0)


def test_gradients_are_those_of_torch():
    z, x = latents(10), latents(2, seed=1).requires_grad_()
    (found,) = torch.autograd.grad(fitted(z).log_prob(x).sum(), x)
    (expected,) = torch.autograd.grad(expected_log_prob(x, truth(z)).sum(), x)
    torch.testing.assert_close(found, expected, **EXACT)


def test_state_of_a_fitted_base_loads_into_a_new_one():
    base, new, x = fitted(latents(10).float()), PositionGaussian(), latents(2, seed=1).float()
    new.load_state_dict(base.state_dict())
    assert torch.equal(new.log_prob(x), base.log_prob(x))


def test_state_that_was_not_fitted_is_rejected():
    state = fitted(latents(10).float()).state_dict()
    state["whitening"] = state["whitening"][:1]
    with pytest.raises(CheckpointError, match=r"whitening must be \(H, W, C, C\) for a mean \(2, 3, 4\)"):
        PositionGaussian().load_state_dict(state)


def test_errors_name_what_is_wrong():
    z = latents(4)
    base = fitted(z)
    with pytest.raises(ShapeError, match=r"grid of 2 x 3 locations .* but got \(1, 4, 4, 4\)"):
        base.log_prob(torch.zeros(1, 4, 4, 4))
    with pytest.raises(ShapeError, match="fitted before use"):
        PositionGaussian().log_prob(z)
    with pytest.raises(ShapeError, match="at least two images"):
        fitted(z[:1])
    with pytest.raises(ShapeError, match="at least 3 images"):
        fitted(z[:2]).normality(z[:2], leave_out=torch.arange(2))
    with pytest.raises(ShapeError, match="at least one image"):
        PositionGaussian().fit(PositionMoments())
    with pytest.raises(DataError, match="finite"):
        fitted(z * float("nan"))
    with pytest.raises(ConfigError, match="shrinkage must be positive"):
        PositionGaussian(shrinkage=0.0)
    moments = PositionMoments()
    moments.update(z)
    with pytest.raises(ShapeError, match="shape of other images"):
        moments.update(torch.zeros(1, 4, 4, 4))
    with pytest.raises(ShapeError, match=r"z must be \(B, C, H, W\)"):
        moments.update(z[0])
    assert "distance" in repr(PositionGaussian("distance"))
