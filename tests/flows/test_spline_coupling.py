"""Spline couplings outside their interval and at extreme inputs, in stacks and in recipes; see also the flow laws."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch

from helpers.flow_cases import default_dtype, features
from helpers.recipe_cases import images, small, stack
from semflow.errors import ConfigError
from semflow.flows import AffineCoupling, GlobalAffine, HardPermutation, SplineCoupling, coupling_stack
from semflow.flows.fused_block import find_block
from semflow.recipes import load
from semflow.testing import check_flow
from semflow.training import fit


@pytest.fixture(autouse=True)
def _seeded_parameters() -> Iterator[None]:
    """Seed torch's global generator, from which layers draw their parameters, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def trained_like(flow: torch.nn.Module) -> torch.nn.Module:
    """Give the subnets weights far from the start, at which a coupling is nearly the identity."""
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(torch.randn_like(parameter))
    return flow


def test_laws_hold_inside_across_and_outside_the_interval() -> None:
    with default_dtype(torch.float64):
        for size in (0.5, 3.0, 30.0):
            x = size * features(2, 6, 2, 3)
            check_flow(SplineCoupling(6), x, perturbation=0.5, tolerance=1e-10, compile_backend=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_features_pass_unchanged(dtype: torch.dtype) -> None:
    """The active half is the identity outside; an extreme passive half gives parameters at their bounds."""
    flow = trained_like(SplineCoupling(4)).to(dtype)
    for value in (1e6, 1e30, -1e30):
        for half in (slice(0, 2), slice(2, 4)):
            x = features(2, 4, 2, 3).to(dtype)
            x[:, half] = value
            x.requires_grad_()
            z, log_det = flow(x)
            again = flow.inverse(z)
            assert torch.equal(z[:, half], x[:, half])
            assert torch.equal(again[:, half], x[:, half])
            assert (again - x).abs().max() < 1e-2  # with the largest slopes
            (gradient,) = torch.autograd.grad(z.sum() + log_det.sum(), x)
            assert gradient.isfinite().all()
            assert log_det.isfinite().all()
            if half.start == 2:
                assert (log_det == 0).all()


def test_slopes_stay_within_what_the_clamp_allows() -> None:
    x = torch.linspace(-3, 3, 4 * 200).view(1, 4, 20, 10)
    for clamp in (0.1, 1.0):
        flow = trained_like(SplineCoupling(4, clamp=clamp, gain=100.0))
        log_det = flow(x)[1]
        assert 0 < log_det.abs().max() <= 2 * 8 * clamp  # two channels, slopes s from exp(-4 clamp), and s^2 within


def test_stack_of_splines_is_inverted_and_never_fused() -> None:
    flow = coupling_stack(6, 3, coupling=partial(SplineCoupling, bins=5), context_channels=0)
    couplings = [layer for layer in flow if isinstance(layer, SplineCoupling)]
    assert [layer.bins for layer in couplings] == [5, 5, 5]
    assert not any(isinstance(layer, AffineCoupling) for layer in flow)
    assert find_block([SplineCoupling(6), GlobalAffine(6), HardPermutation(6)], features(1, 6, 2, 2)) is None
    x = 2 * features(3, 6, 4, 4)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        z, log_det = flow(x)
        torch.testing.assert_close(flow.inverse(z), x, rtol=1e-5, atol=1e-5)
    assert log_det.shape == (3, 4, 4)


@pytest.mark.parametrize("bins", [0, 1, 1000])
def test_numbers_of_bins_that_the_minima_do_not_allow_are_rejected(bins: int) -> None:
    with pytest.raises(ConfigError, match=rf"^bins must be from 2 to 999, but got {bins}$"):
        SplineCoupling(4, bins=bins)
    with pytest.raises(ConfigError, match=r"^bound must be positive, but got 0.0$"):
        SplineCoupling(4, bound=0.0)


@pytest.mark.parametrize("name", ["cflow_ad", "memory_flow"])
def test_recipes_take_splines(name: str, tmp_path) -> None:
    detector = small(name, {"couplings.kind": "spline", "couplings.blocks": 1})
    kinds = {type(m) for m in detector.flows.modules() if isinstance(m, AffineCoupling | SplineCoupling)}
    assert kinds == {SplineCoupling}
    fit(detector, images(4), epochs=1, calibration=None, output=tmp_path / "run", progress=False)
    batch = stack(images(2, seed=1))
    assert torch.equal(load(tmp_path / "run").predict(batch).score, detector.predict(batch).score)
    with pytest.raises(ConfigError, match=r"couplings\.kind must be affine or spline, but got 'cubic'"):
        small(name, {"couplings.kind": "cubic"})
