"""Rational-quadratic splines compared with their published formula in 40 digits; inverse, slope, edges and extremes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.functional_truths import ctx
from semflow.errors import ConfigError, ShapeError
from semflow.functional import rational_quadratic_spline

MINIMUM = 1e-3
spreads, bounds, bin_counts = (
    st.sampled_from([0.0, 0.3, 1.0, 3.0]),
    st.sampled_from([1.0, 3.0, 10.0]),
    st.integers(2, 12),
)
EXTREME = [0.0, 1.0, 30.0, 1e4, 1e30]


def drawn(count: int, bins: int, spread: float, seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Draw the logits of `count` splines."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (bins, bins, bins - 1)
    return [(spread * torch.randn(count, k, generator=generator, dtype=torch.float64)).to(dtype) for k in sizes]


def knots(logits, bound):
    exponents = [ctx.exp(v) for v in logits]
    shares = [MINIMUM + (1 - len(logits) * ctx.mpf(MINIMUM)) * e / sum(exponents) for e in exponents]
    return [bound * (2 * sum(shares[:k], ctx.mpf(0)) - 1) for k in range(len(logits) + 1)]


def published(x, widths, heights, slopes, bound):
    """Compute y and dy/dx by Eq. 4 and 5 of the paper, with its minima."""
    x = ctx.mpf(x)
    if not -bound < x < bound:
        return x, ctx.mpf(1)
    xs, ys = knots(widths, bound), knots(heights, bound)
    constant = ctx.log(ctx.expm1(1 - ctx.mpf(MINIMUM)))
    ds = [1, *(MINIMUM + ctx.log1p(ctx.exp(v + constant)) for v in slopes), 1]
    k = max(k for k in range(len(widths)) if xs[k] <= x)
    s, xi = (ys[k + 1] - ys[k]) / (xs[k + 1] - xs[k]), (x - xs[k]) / (xs[k + 1] - xs[k])
    bottom = s + (ds[k + 1] + ds[k] - 2 * s) * xi * (1 - xi)
    y = ys[k] + (ys[k + 1] - ys[k]) * (s * xi**2 + ds[k] * xi * (1 - xi)) / bottom
    return y, s**2 * (ds[k + 1] * xi**2 + 2 * s * xi * (1 - xi) + ds[k] * (1 - xi) ** 2) / bottom**2


@given(st.floats(-1.2, 1.2), bounds, bin_counts, spreads, st.integers(0, 10**6))
@settings(max_examples=60)
def test_value_slope_and_inverse_are_those_of_the_paper(position, bound, bins, spread, seed):
    x = torch.tensor([position * bound], dtype=torch.float64)
    logits = drawn(1, bins, spread, seed)
    y, log_slope = rational_quadratic_spline(x, *logits, bound)
    right, slope = published(x.item(), *(v[0].tolist() for v in logits), bound)
    slack = 1e-12 * bound * max(1.0, float(slope))
    assert y.item() == pytest.approx(float(right), rel=1e-12, abs=slack)
    assert log_slope.item() == pytest.approx(float(ctx.log(slope)), rel=1e-10, abs=1e-9)
    back, log_back = rational_quadratic_spline(
        torch.tensor([float(right)], dtype=torch.float64), *logits, bound, inverse=True
    )
    assert back.item() == pytest.approx(x.item(), rel=1e-12, abs=1e-13 * bound * max(1.0, float(1 / slope)))
    assert log_back.item() == pytest.approx(-log_slope.item(), rel=1e-9, abs=1e-8)


@given(bounds, bin_counts, spreads, st.integers(0, 10**6))
@settings(max_examples=25)
def test_log_slope_is_that_of_autograd_everywhere(bound, bins, spread, seed):
    """Within, outside, at the ends and at every knot."""
    logits = [part.expand(200 + 2 * bins, -1) for part in drawn(1, bins, spread, seed)]
    xs, ys = (
        torch.tensor([float(v) for v in knots(part[0].tolist(), bound)][1:], dtype=torch.float64) for part in logits[:2]
    )
    inner = 1.5 * bound * torch.linspace(-1, 1, 200, dtype=torch.float64)
    for at, inverse in ((xs, False), (ys, True)):
        x = torch.cat((inner, at, at.nextafter(-at))).requires_grad_()
        y, log_slope = rational_quadratic_spline(x, *logits, bound, inverse=inverse)
        (slope,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(log_slope, slope.log(), rtol=1e-9, atol=1e-9)
        order = x.detach().argsort()
        assert (y.detach()[order].diff() >= -1e-15 * bound).all()


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_inverse_undoes_forward_in_and_outside_the_interval(dtype, allowed):
    logits = drawn(4000, 8, 0.5, 0, dtype)
    x = torch.linspace(-6, 6, 4000).to(dtype)
    y, log_slope = rational_quadratic_spline(x, *logits)
    again, log_back = rational_quadratic_spline(y, *logits, inverse=True)
    flat = torch.exp(-log_slope).clamp(min=1)  # rounding of y is amplified by it
    assert ((again - x).abs() <= allowed * flat).all()
    assert ((log_back + log_slope).abs() <= allowed * 10 * flat).all()
    outside = x.abs() >= 3
    assert torch.equal(y[outside], x[outside])
    assert torch.equal(again[outside], x[outside])
    assert (log_slope[outside] == 0).all()
    assert (log_slope[~outside] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", EXTREME)
def test_extreme_bins_and_slopes_stay_finite_and_invertible(spread, dtype):
    """Bins of the least width beside bins of the least height, and derivatives at both of their bounds."""
    logits = [part.requires_grad_() for part in drawn(3000, 8, spread, 1, dtype)]
    eps = torch.finfo(dtype).eps
    for inverse in (False, True):
        x = torch.linspace(-3.5, 3.5, 3000).to(dtype).requires_grad_()
        y, log_slope = rational_quadratic_spline(x, *logits, inverse=inverse)
        assert y.isfinite().all()
        assert log_slope.isfinite().all()
        gradients = torch.autograd.grad(y.sum() + log_slope.sum(), [x, *logits])
        assert all(g.isfinite().all() for g in gradients)
        again, _ = rational_quadratic_spline(y, *logits, inverse=not inverse)
        steps = torch.exp(-log_slope.detach()).clamp(min=1)
        near = ((again - x).abs() <= 1e3 * eps * steps).double().mean()
        assert near > 0.999  # y may be rounded into a bin beside, whose slope is another


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_is_allowed(dtype):
    far = torch.tensor([0.0, 3.0, -3.0, 1e30, -1e30, torch.inf, -torch.inf, torch.nan], dtype=dtype)
    logits = drawn(8, 5, 1.0, 2, dtype)
    for inverse in (False, True):
        x = far.clone().requires_grad_()
        y, log_slope = rational_quadratic_spline(x, *logits, inverse=inverse)
        assert torch.equal(y[1:7], far[1:7])
        assert y[7].isnan()
        assert torch.equal(log_slope[1:].abs(), torch.zeros(7, dtype=dtype))
        (gradient,) = torch.autograd.grad(y.sum() + log_slope.sum(), x)
        assert gradient.isfinite().all()
        assert torch.equal(gradient[3:], torch.ones(5, dtype=dtype))


@given(bounds, bin_counts, st.integers(0, 100))
@settings(max_examples=20)
def test_zeros_are_the_identity(bound, bins, seed):
    x = bound * torch.tensor(np.random.default_rng(seed).uniform(-1.1, 1.1, 50))
    for inverse in (False, True):
        y, log_slope = rational_quadratic_spline(x, *drawn(50, bins, 0.0, 0), bound, inverse=inverse)
        torch.testing.assert_close(y, x, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0, atol=1e-13)


def test_gradients_to_all_arguments_are_those_of_finite_differences():
    logits = [part.requires_grad_() for part in drawn(6, 4, 1.0, 3)]
    x = torch.linspace(-3.3, 3.3, 6, dtype=torch.float64, requires_grad=True)
    for inverse in (False, True):
        assert torch.autograd.gradcheck(
            lambda *given, inverse=inverse: rational_quadratic_spline(*given, inverse=inverse), (x, *logits)
        )


def test_wrong_shapes_and_minima_are_rejected():
    x, (w, h, d) = torch.zeros(2), drawn(2, 4, 0.0, 0)
    for wrong in ((w[:1], h, d), (w, h[:, :3], d), (w, h, h), (w[None], h[None], d[None])):
        with pytest.raises(ShapeError, match=r"^widths, heights and slopes must be \(\(2, 4\)"):
            rational_quadratic_spline(x, *wrong)
    for minimum in (0.0, 0.25, -1.0):
        with pytest.raises(ConfigError, match=r"^minimum must be between 0 and 1 / 4, .*, but got"):
            rational_quadratic_spline(x, w, h, d, minimum=minimum)
