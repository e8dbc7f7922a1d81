"""Permutations, global affine and standardization."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.flow_cases import features, generator
from semflow.errors import ConfigError, DataError, ShapeError
from semflow.flows import FlowSequence, GlobalAffine, HardPermutation, SoftPermutation, Standardize


@given(channels=st.integers(1, 40), seed=st.integers(0, 99))
def test_hard_permutation_reorders_channels(channels: int, seed: int) -> None:
    flow, x = HardPermutation(channels, generator(seed)), features(2, channels, 2, 3)
    z, log_det = flow(x)
    assert torch.equal(z, x[:, flow.index])
    assert sorted(flow.index.tolist()) == list(range(channels))
    assert torch.equal(flow.inverse(z), x)
    assert not log_det.any()


def test_loading_hard_permutation_restores_its_inverse() -> None:
    flow, other = HardPermutation(16, generator(0)), HardPermutation(16, generator(1))
    assert flow.state_dict().keys() == {"index"}
    FlowSequence([other]).load_state_dict(FlowSequence([flow]).state_dict())
    x = features(1, 16, 2, 2)
    assert torch.equal(other.inverse(flow(x)[0]), x)


@given(channels=st.integers(1, 24), seed=st.integers(0, 99))
def test_soft_permutation_is_a_rotation(channels: int, seed: int) -> None:
    matrix = SoftPermutation(channels, generator(seed)).matrix.double()
    assert torch.allclose(matrix @ matrix.T, torch.eye(channels, dtype=torch.float64), atol=1e-6)
    assert torch.linalg.det(matrix).item() == pytest.approx(1.0, abs=1e-5)


def test_soft_permutations_are_haar_distributed() -> None:
    """Entries have mean 0; without the sign correction, QR makes the diagonal negative."""
    entries = torch.stack([SoftPermutation(4, generator(seed)).matrix for seed in range(600)])
    assert entries.mean(0).abs().max() < 5 * 0.5 / 600**0.5
    assert (entries.square().mean(0) - 0.25).abs().max() < 0.06


def test_permutations_are_determined_by_the_generator() -> None:
    for make, name in ((HardPermutation, "index"), (SoftPermutation, "matrix")):
        first, again, other = (getattr(make(32, generator(seed)), name) for seed in (3, 3, 4))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_global_affine_starts_at_the_identity(dtype: torch.dtype) -> None:
    x = features(2, 5, 2, 3).to(dtype)
    z, log_det = GlobalAffine(5).to(dtype)(x)
    assert torch.allclose(z, x, rtol=1e-6, atol=0)
    assert log_det.abs().max() < 1e-5


@pytest.mark.parametrize("start", [1e-3, 0.3, 1.0, 7.0, 500.0])
def test_global_affine_starts_at_the_given_scale(start: float) -> None:
    z, log_det = GlobalAffine(3, start=start)(torch.ones(1, 3, 1, 1))
    assert z.flatten().tolist() == pytest.approx(3 * [start], rel=1e-4)
    assert log_det.item() == pytest.approx(3 * np.log(start), abs=3e-4)


@pytest.mark.parametrize("start", [0.0, -1.0, float("nan")])
def test_global_affine_rejects_nonpositive_start(start: float) -> None:
    with pytest.raises(ConfigError, match=r"start must be (positive|a finite number)"):
        GlobalAffine(3, start=start)


def test_global_affine_scales_stay_positive() -> None:
    flow = GlobalAffine(3)
    with torch.no_grad():
        flow.raw_scale.copy_(torch.tensor([-60.0, 0.0, 1e4]))
        z, log_det = flow(torch.ones(1, 3, 1, 1))
    assert (z > 0).all()
    assert log_det.isfinite().all()


batches = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@given(sizes=batches, seed=st.integers(0, 99), offset=st.sampled_from([0.0, 1e3, -1e5]))
def test_standardize_matches_numpy_for_any_batches(sizes: list[int], seed: int, offset: float) -> None:
    x = offset + features(sum(sizes), 3, 2, 5, seed=seed) * torch.tensor([0.5, 1.0, 4.0])[:, None, None]
    flow = Standardize(3).fit(x.split(sizes))
    whole = x.double().numpy()
    np.testing.assert_allclose(flow.mean.numpy(), whole.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(flow.std.numpy(), whole.std((0, 2, 3)), rtol=1e-6)
    double = Standardize(3).double().fit(x.split(sizes))
    np.testing.assert_allclose(double.mean.numpy(), whole.mean((0, 2, 3)), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(double.std.numpy(), whole.std((0, 2, 3)), rtol=1e-9)


def test_standardize_fits_maps_of_several_sizes_and_empty_ones() -> None:
    parts = [features(2, 3, 4, 5), features(0, 3, 4, 5), features(1, 3, 7, 2, seed=4)]
    flow = Standardize(3).fit(part for part in parts)
    flat = torch.cat([part.permute(1, 0, 2, 3).flatten(1) for part in parts], dim=1).numpy()
    np.testing.assert_allclose(flow.mean.numpy(), flat.mean(1), atol=1e-6)
    np.testing.assert_allclose(flow.std.numpy(), flat.std(1), rtol=1e-5)


def dead(x: Tensor, *channels: int, value: float = 0.1) -> Tensor:
    x = x.clone()
    x[:, list(channels)] = value
    return x


@pytest.mark.parametrize("channels", [(0,), (0, 1), (0, 1, 2)])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_dead_channels_are_not_amplified(channels: tuple[int, ...], value: float) -> None:
    """Such a channel may change at test time and must not dominate the latents then."""
    x = features(8, 4, 4, 4)
    flow = Standardize(4).fit(dead(x, *channels, value=value).split(2))
    alive = [c for c in range(4) if c not in channels]
    assert (flow.std[list(channels)] >= 0.009 * flow.std[alive].min()).all()
    z, log_det = flow(dead(x, *channels, value=value + 0.01))
    assert z.abs().max() < 10
    assert log_det.isfinite().all()


def test_only_dead_channels_keep_unit_scale() -> None:
    flow = Standardize(3).fit([torch.full((2, 3, 2, 2), 0.1), torch.full((1, 3, 2, 2), 0.1)])
    assert flow.std.tolist() == [1, 1, 1]
    assert flow.mean.tolist() == pytest.approx([0.1] * 3)


def test_floor_is_relative_to_the_median_of_live_channels() -> None:
    x = features(64, 3, 4, 4) * torch.tensor([1e-4, 1.0, 1.0])[:, None, None]
    assert Standardize(3, floor=0.1).fit([x]).std[0].item() == pytest.approx(0.1, rel=0.1)
    assert Standardize(3, floor=0.0).fit([x]).std[0].item() == pytest.approx(1e-4, rel=0.1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_standardize_rejects_non_finite_features(value: float) -> None:
    flow = Standardize(3)
    with pytest.raises(DataError, match="features must be finite"):
        flow.fit([dead(features(2, 3, 2, 2), 1, value=value)])
    assert flow.std.tolist() == [1, 1, 1]  # the constants are unchanged


def test_standardize_rejects_negative_floor() -> None:
    with pytest.raises(ConfigError, match="floor must be at least 0, but got -1"):
        Standardize(3, floor=-1.0)


def test_standardize_rejects_no_maps_and_other_channels() -> None:
    for maps in ([], [features(0, 3, 2, 2)]):
        with pytest.raises(ShapeError, match="at least one feature map"):
            Standardize(3).fit(maps)
    with pytest.raises(ShapeError, match=r"x must be \(B, 3, H, W\)"):
        Standardize(3).fit([features(2, 4, 2, 2)])


def test_standardize_keeps_the_likelihood_of_raw_features() -> None:
    """Log-densities in meters and in millimeters differ by the log of the factor."""
    x = features(16, 2, 8, 8)
    for unit in (1.0, 1000.0):
        z, log_det = Standardize(2).fit([x * unit])(x * unit)
        log_p = -0.5 * (z.square().sum(1) + 2 * np.log(2 * np.pi)) + log_det + 2 * np.log(unit)
        assert log_p.mean().item() == pytest.approx(-(1 + np.log(2 * np.pi)), abs=0.1)


def test_hard_permutation_supports_all_derivatives() -> None:
    """It has a custom gradient; check forward mode, batched and second derivatives."""
    flow, x = HardPermutation(5, generator(2)).double(), features(2, 5, 2, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: flow(x)[0], x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: flow(x)[0].pow(3), x)
