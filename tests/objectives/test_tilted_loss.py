"""The tilted mean of the negative log-likelihood against its definition, its limits and extreme values."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from torch import Tensor

from semflow.bases import StandardNormal
from semflow.errors import ConfigError
from semflow.objectives import Objective, largest_over_locations


def loss(tilt: float | None, nll: Tensor, ignore: Tensor | None = None, event: str = "location") -> Tensor:
    """The loss of latents of 1 channel at 0 whose log-det gives any likelihood, up to a constant that is removed."""
    shape = nll.shape if event == "location" else (len(nll), 1, 1)
    z = torch.zeros(shape[0], 1, *shape[1:], dtype=nll.dtype)
    constant = 0.5 * float(np.log(2 * np.pi))
    terms = Objective(bce=0.0, kl=0.0, tilt=tilt)(z, constant - nll, event, StandardNormal(), None, None, ignore)
    assert terms.nll.item() == pytest.approx(Objective(0.0, 0.0)(
        z, constant - nll, event, StandardNormal(), None, None, ignore
    ).nll.item(), rel=1e-12, nan_ok=True)  # fmt: skip
    return terms.total


def truth(tilt: float, values: np.ndarray) -> float:
    values = values.astype(np.float64)
    return float(tilt * (logsumexp(values / tilt) - np.log(len(values))))


@given(st.integers(0, 2**31), st.floats(0.01, 100), st.floats(-2, 3), st.booleans())
@settings(max_examples=60)
def test_tilted_loss_equals_its_definition(seed, tilt, log_scale, some_ignored) -> None:
    rng = np.random.default_rng(seed)
    nll = torch.from_numpy(rng.normal(size=(2, 3, 4)) * 10**log_scale)
    ignore = torch.from_numpy(rng.random((2, 3, 4)) < 0.5) if some_ignored else torch.zeros(2, 3, 4, dtype=torch.bool)
    ignore[0, 0, 0] = False
    expected = truth(tilt, nll[~ignore].numpy())
    scale = 10**log_scale
    assert loss(tilt, nll, ignore).item() == pytest.approx(expected, rel=1e-9, abs=1e-9 * scale)
    assert loss(tilt, nll.float(), ignore).item() == pytest.approx(expected, rel=1e-5, abs=1e-5 * max(scale, tilt))
    assert loss(tilt, nll[:, 0, 0], event="sample").item() == pytest.approx(truth(tilt, nll[:, 0, 0].numpy()), rel=1e-9)


@given(st.integers(0, 2**31), st.floats(0.02, 20))
@settings(max_examples=20)
def test_gradient_weighs_locations_by_their_tilted_share(seed, tilt) -> None:
    """The share of a location is softmax(L / T), and 0 if it is ignored, even where it overflows."""
    rng = np.random.default_rng(seed)
    nll = torch.from_numpy(rng.normal(size=(2, 3, 4))).requires_grad_()
    ignore = torch.zeros(2, 3, 4, dtype=torch.bool)
    ignore[0, 0, 0] = True
    with torch.no_grad():
        nll[0, 0, 0] = 1e6
    (found,) = torch.autograd.grad(loss(tilt, nll, ignore), nll)
    expected = torch.softmax(nll.detach().masked_fill(ignore, -torch.inf).flatten() / tilt, 0).view_as(nll)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_limits_are_the_mean_and_the_maximum(dtype) -> None:
    nll = torch.randn(2, 30, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert loss(1e6, nll).item() == pytest.approx(nll.double().mean().item(), abs=2e-6)
    assert loss(1e-4, nll).item() == pytest.approx(nll.max().item(), abs=1e-3)
    values = [loss(tilt, nll).item() for tilt in (1e-3, 0.05, 0.3, 1.0, 10.0)]
    assert values == sorted(values, reverse=True)


def test_extreme_values_are_finite() -> None:
    nll = torch.tensor([[[-1e30, 0.0, 1e30]]])
    assert loss(0.05, nll).item() == pytest.approx(1e30)
    assert loss(0.05, torch.full((1, 2, 2), 3.0)).item() == pytest.approx(3.0)
    assert loss(0.05, torch.full((1, 1, 1), -7.0)).item() == pytest.approx(-7.0)


def test_loss_is_zero_if_all_locations_are_ignored() -> None:
    nll = torch.randn(2, 3, 4, requires_grad=True)
    total = loss(0.05, nll, torch.ones(2, 3, 4))
    assert total.item() == 0
    (gradient,) = torch.autograd.grad(total, nll)
    assert (gradient == 0).all()


def test_values_that_are_not_finite_are_seen() -> None:
    for value in (float("nan"), float("inf")):
        assert not loss(0.1, torch.tensor([[[0.0, value]]])).isfinite()


def test_largest_over_locations_ignores() -> None:
    x = torch.tensor([[[1.0, 5.0, 3.0]]], requires_grad=True)
    found = largest_over_locations(x, torch.tensor([[[0, 1, 0]]]))
    assert found.item() == 3
    assert not found.requires_grad
    assert largest_over_locations(x, torch.ones(1, 1, 3)).item() == float("-inf")
    assert largest_over_locations(x[0, 0], torch.ones(1, 1, 3)).item() == 5  # of samples


def test_tilt_must_be_positive_and_without_squash() -> None:
    for tilt in (0.0, -1.0):
        with pytest.raises(ConfigError, match="tilt must be positive or None, but got"):
            Objective(tilt=tilt)
    with pytest.raises(ConfigError, match=r"tilt must be None for a squashed loss, but got 0\.1"):
        Objective(tilt=0.1, squash=True)
