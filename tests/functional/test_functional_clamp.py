"""Soft clamps are bounded, odd and increasing, with the documented slopes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.functional_truths import ctx
from semflow.errors import ConfigError
from semflow.functional import CLAMPS, soft_clamp

bounds, forms = st.floats(0.1, 20), st.sampled_from(CLAMPS)

VALUES = {
    "tanh": lambda x, c: c * ctx.tanh(x),
    "tanh_unit": lambda x, c: c * ctx.tanh(x / c),
    "atan": lambda x, c: c * 2 / ctx.pi * ctx.acot(c / x) if x else ctx.mpf(0),
}
SLOPES_AT_ZERO = {"tanh": lambda c: c, "tanh_unit": lambda c: 1.0, "atan": lambda c: 2 / math.pi}


def value_and_slope(x, bound, form):
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = soft_clamp(t, bound, form)
    return value.item(), torch.autograd.grad(value, t)[0].item()


@given(st.floats(-30, 30), bounds, forms)
@settings(max_examples=80)
def test_soft_clamp_matches_its_formula_and_slope(x, bound, form):
    value, slope = value_and_slope(x, bound, form)
    at, c = ctx.mpf(x), ctx.mpf(bound)
    assert value == pytest.approx(float(VALUES[form](at, c)), rel=1e-13, abs=1e-300)
    assert slope == pytest.approx(float(ctx.diff(lambda t: VALUES[form](t, c), at)), rel=1e-6, abs=1e-14)
    assert abs(value) <= bound
    assert value_and_slope(-x, bound, form) == (-value, slope)
    _, steepest = value_and_slope(0.0, bound, form)
    assert steepest == pytest.approx(SLOPES_AT_ZERO[form](bound), rel=1e-12)
    assert 0 <= slope <= steepest * (1 + 1e-12)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=20), bounds, forms)
@settings(max_examples=40)
def test_soft_clamp_is_increasing(numbers, bound, form):
    x = torch.tensor(sorted(numbers))
    y = soft_clamp(x, bound, form)
    assert (y.diff() >= 0).all()
    assert (y.abs() <= bound * (1 + 1e-6)).all()
    assert y.dtype == x.dtype


def test_soft_clamp_approaches_the_bound():
    far = torch.tensor([-1e9, 1e9], dtype=torch.float64)
    for form in CLAMPS:
        assert soft_clamp(far, 1.9, form).tolist() == pytest.approx([-1.9, 1.9], rel=1e-8)


def test_soft_clamp_defaults_are_the_published_ones():
    x = torch.linspace(-3, 3, 7)
    assert torch.allclose(soft_clamp(x), 1.9 * torch.tanh(x))


def test_soft_clamp_rejects_unknown_form():
    with pytest.raises(ConfigError, match=r"^form must be one of tanh, tanh_unit, atan, but got 'sigmoid'"):
        soft_clamp(torch.zeros(1), 1.9, "sigmoid")
