"""Inverse-gamma functions compared with scipy, quadrature and 40-digit arithmetic."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from helpers.devices import DEVICE
from helpers.functional_truths import TOLERANCE, assert_close, ctx, expectation, kl
from semflow.errors import ConfigError
from semflow.functional import (
    digamma,
    inverse_gamma_kl,
    inverse_gamma_log_mean,
    inverse_gamma_mode,
    inverse_gamma_precision,
    inverse_gamma_prior,
)
from semflow.functional.inverse_gamma import lgamma_step, narrow
from semflow.functional.series import stirling_tail

shapes, scales = st.floats(0.4, 40), st.floats(0.05, 20)
decades = st.floats(-6, 6).map(lambda x: 10**x)
EDGES = [1e-6, 1e-3, 0.7, 1.0, 59.5, 1e3, 1e6]
DEVICES = [
    "cpu",
    pytest.param(DEVICE, marks=pytest.mark.cuda, id="cuda"),
]


def tensor(x, dtype=torch.float64):
    return torch.tensor(x, dtype=dtype, requires_grad=True)


def mode_by_search(a, b):
    found = optimize.minimize_scalar(
        lambda t: -stats.invgamma.logpdf(math.exp(t), a, scale=b),
        bracket=(math.log(b / a) - 1, math.log(b / a)),
        options={"xtol": 1e-9},
    )
    return math.exp(found.x)


@given(st.floats(1.6, 40), st.floats(0.01, 10))
@settings(max_examples=25)
def test_prior_has_the_given_mode(window, mode):
    alpha, beta = inverse_gamma_prior(window, mode)
    assert alpha == pytest.approx(window**2 / 2 - 1, rel=1e-12)
    assert mode_by_search(alpha, beta) == pytest.approx(mode, rel=1e-6)


def test_default_prior_is_that_of_the_paper():
    assert inverse_gamma_prior() == pytest.approx((59.5, 6.05), rel=1e-14)


@pytest.mark.parametrize(
    ("wrong", "options"),
    [
        ("window", {"window": 1}),
        ("window", {"window": math.sqrt(2) - 1e-9}),
        ("window", {"window": math.nan}),
        ("mode", {"mode": 0.0}),
        ("mode", {"mode": -1.0}),
        ("mode", {"mode": math.nan}),
    ],
)
def test_prior_rejects_invalid_window_and_mode(wrong, options):
    with pytest.raises(ConfigError, match=f"^{wrong} must be"):
        inverse_gamma_prior(**options)


@given(shapes, scales)
@settings(max_examples=25)
def test_moments_match_scipy(a, b):
    alpha, beta = tensor(a), tensor(b)
    assert inverse_gamma_mode(alpha, beta).item() == pytest.approx(mode_by_search(a, b), rel=1e-6)
    log_mean = expectation(lambda s: torch.from_numpy(s).log().numpy(), a, b)
    assert inverse_gamma_log_mean(alpha, beta).item() == pytest.approx(log_mean, abs=1e-9)
    assert inverse_gamma_precision(alpha, beta).item() == pytest.approx(expectation(lambda s: 1 / s, a, b), rel=1e-9)


# KL divergence


@given(shapes, scales, shapes, scales)
@settings(max_examples=40)
def test_kl_matches_quadrature(a, b, a0, b0):
    def log_ratio(s):
        return stats.invgamma.logpdf(s, a, scale=b) - stats.invgamma.logpdf(s, a0, scale=b0)

    integral = expectation(log_ratio, a, b)
    got = inverse_gamma_kl(tensor(a), tensor(b), a0, b0).item()
    assert got == pytest.approx(integral, rel=1e-8, abs=1e-8)


def test_kl_matches_known_digits():
    got = inverse_gamma_kl(tensor(2.5), tensor(1.3), 1.7, 0.4).item()
    assert got == pytest.approx(0.45497900764778, abs=1e-14)
    a, b, a0, b0 = (ctx.mpf(x) for x in ("2.5", "1.3", "1.7", "0.4"))

    def density(s, a, b):
        return b**a / ctx.gamma(a) * s ** (-a - 1) * ctx.exp(-b / s)

    integral = ctx.quad(
        lambda t: (
            ctx.exp(t) * density(ctx.exp(t), a, b) * ctx.log(density(ctx.exp(t), a, b) / density(ctx.exp(t), a0, b0))
        ),
        [-5, -2, 0, 2, 8, 40],
    )
    assert got == pytest.approx(float(integral), abs=1e-12)


@given(decades, decades, decades, decades)
@settings(max_examples=60)
def test_kl_is_nonnegative_and_zero_at_the_prior(a, b, a0, b0):
    alpha, beta = tensor(a), tensor(b)
    assert inverse_gamma_kl(alpha, beta, a0, b0).item() >= -4e-15 * kl(a, b, a0, b0)["value"].scale
    at_prior = inverse_gamma_kl(alpha, beta, a, b)
    at_prior.backward()
    rounding = kl(a, b, a, b)
    assert at_prior.item() == pytest.approx(0, abs=4e-15 * rounding["value"].scale)
    assert alpha.grad.item() == pytest.approx(0, abs=4e-15 * rounding["alpha"].scale)
    assert beta.grad.item() == pytest.approx(0, abs=4e-15 * rounding["beta"].scale)


@given(st.floats(0.5, 50), st.floats(0.1, 20), st.floats(0.2, 5), st.floats(0.2, 5))
@settings(max_examples=25)
def test_kl_is_positive_away_from_the_prior(a, b, shape_factor, scale_factor):
    got = inverse_gamma_kl(tensor(a), tensor(b), a * shape_factor, b * scale_factor).item()
    distance = max(abs(math.log(shape_factor)), abs(math.log(scale_factor)))
    assert got > 0 or distance < 1e-4


def check_kl(a, b, a0, b0, dtype, device="cpu"):
    alpha, beta = (torch.tensor([[[x]]], dtype=dtype, device=device, requires_grad=True) for x in (a, b))
    value = inverse_gamma_kl(alpha, beta, a0, b0)
    assert value.dtype == dtype
    assert value.shape == alpha.shape
    value.sum().backward()
    truth = kl(alpha.item(), beta.item(), a0, b0)
    for name, got in (("value", value), ("alpha", alpha.grad), ("beta", beta.grad)):
        assert_close(got, truth[name], TOLERANCE[dtype], f"{name} at {a}, {b} || {a0}, {b0}")


@given(decades, decades, decades, decades, st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=80)
def test_kl_and_its_gradient_are_accurate_at_extremes(a, b, a0, b0, dtype):
    check_kl(a, b, a0, b0, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_is_accurate_on_a_grid(device, dtype):
    for a in EDGES:
        for b in EDGES:
            check_kl(a, b, 59.5, 6.05, dtype, device)


def test_kl_accepts_numbers_and_tensors_as_prior():
    a, b = torch.rand(2, 1, 3, 4) + 1, torch.rand(2, 1, 3, 4) + 1
    number = inverse_gamma_kl(a, b, 59.5, 6.05)
    assert number.shape == a.shape
    for prior in (torch.tensor(59.5), torch.full((1, 1, 1, 1), 59.5), torch.full_like(a, 59.5).bfloat16()):
        assert torch.equal(inverse_gamma_kl(a, b, prior, 6.05), number)
    each = torch.stack([inverse_gamma_kl(x, y, 59.5, 6.05) for x, y in zip(a.flatten(), b.flatten(), strict=True)])
    assert torch.equal(each.view_as(number), number)


# Digamma


@given(st.floats(-7, 7).map(lambda x: 10**x))
@settings(max_examples=100)
def test_digamma_and_its_gradient_are_accurate(x):
    t = tensor(x)
    value = digamma(t)
    value.backward()
    psi, trigamma = ctx.digamma(ctx.mpf(x)), ctx.zeta(2, ctx.mpf(x))
    # near the root of psi at 1.4616, rounding of x limits the accuracy
    conditioning = 4 * 2.3e-16 * x * float(trigamma)
    assert value.item() == pytest.approx(float(psi), rel=1e-12, abs=conditioning)
    assert t.grad.item() == pytest.approx(float(trigamma), rel=1e-13, abs=0)


@pytest.mark.parametrize("device", DEVICES)
def test_digamma_is_accurate_on_devices(device):
    x = torch.tensor(EDGES, dtype=torch.float64, device=device, requires_grad=True)
    value = digamma(x)
    value.sum().backward()
    for got, slope, at in zip(value.tolist(), x.grad.tolist(), x.tolist(), strict=True):
        assert got == pytest.approx(float(ctx.digamma(at)), rel=1e-12)
        assert slope == pytest.approx(float(ctx.zeta(2, at)), rel=1e-13, abs=0)


def test_digamma_has_second_derivatives():
    x = torch.tensor([1e-2, 0.3, 1.0, 1.46, 7.0, 100.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(digamma, x, eps=1e-7, rtol=1e-5)
    assert torch.autograd.gradgradcheck(digamma, x, eps=1e-7, rtol=1e-5)
    second = torch.func.vmap(torch.func.grad(torch.func.grad(digamma)))(x.detach())
    assert second.tolist() == pytest.approx([float(-2 * ctx.zeta(3, t)) for t in x.tolist()], rel=1e-13, abs=0)


def test_functions_have_second_derivatives():
    x = torch.tensor([0.3, 2.0, 15.0, 17.0, 60.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda t: lgamma_step(t, 2.5), x)
    y = torch.tensor([0.2, 3.0, 1.0, 0.5, 6.0], dtype=torch.float64, requires_grad=True)
    a0, b0 = tensor(1.7), tensor(0.4)
    assert torch.autograd.gradcheck(inverse_gamma_kl, (x, y, a0, b0))
    assert torch.autograd.gradgradcheck(inverse_gamma_kl, (x, y, a0, b0))


def test_digamma_supports_vmap_and_grad():
    x = torch.tensor([[0.2, 1.0], [3.0, 50.0]], dtype=torch.float64)
    assert torch.equal(torch.func.vmap(digamma)(x), digamma(x))
    assert torch.equal(torch.func.vmap(digamma, in_dims=1, out_dims=1)(x), digamma(x))
    slopes = torch.func.vmap(torch.func.grad(lambda row: digamma(row).sum()))(x)
    assert torch.allclose(slopes, torch.special.zeta(torch.tensor(2.0, dtype=torch.float64), x), rtol=1e-15)
    jacobian = torch.func.jacrev(lambda row: inverse_gamma_kl(row, row, 2.0, 3.0))(x[0])
    expected = [kl(t, t, 2.0, 3.0) for t in x[0].tolist()]
    assert jacobian.diagonal().tolist() == pytest.approx([e["alpha"].value + e["beta"].value for e in expected])
    assert jacobian.triu(1).abs().max().item() == 0


@given(st.floats(-6, 6).map(lambda x: 10**x), st.sampled_from([0.5, 1.0, 4.0, 256.0, 1024.0]))
@settings(max_examples=100)
def test_lgamma_step_and_its_gradient_are_accurate(x, step):
    """Relative to the difference, not to the two large logarithms; the same for the derivative."""
    t = tensor(x)
    value = lgamma_step(t, step)
    value.backward()
    at = ctx.mpf(x)
    rising = ctx.loggamma(at + step) - ctx.loggamma(at)
    slope = ctx.digamma(at + step) - ctx.digamma(at)
    # below 17 it is a plain difference, whose accuracy near zero is that of its terms
    rounding = 2e-15 * float(1 + abs(ctx.loggamma(at))) if x < 17 else 0.0
    assert value.item() == pytest.approx(float(rising), rel=1e-13, abs=rounding)
    assert t.grad.item() == pytest.approx(float(slope), rel=1e-13, abs=0)


@given(st.floats(16, 1e4))
@settings(max_examples=40)
def test_stirling_tail_is_accurate(x):
    at = ctx.mpf(x)
    rest = ctx.loggamma(at) - (at - 0.5) * ctx.log(at) + at - ctx.log(2 * ctx.pi) / 2
    assert stirling_tail(tensor(x)).item() == pytest.approx(float(rest), abs=5e-18)


@given(st.floats(-2, 3).map(lambda x: 10**x), st.floats(0.1, 100), st.sampled_from([1.7, 59.5]))
@settings(max_examples=30)
def test_second_derivative_of_kl_is_accurate(a, b, a0):
    """More accurate than with torch's derivative of digamma."""
    t = tensor(a)
    (slope,) = torch.autograd.grad(inverse_gamma_kl(t, tensor(b), a0, 1.0), t, create_graph=True)
    (bend,) = torch.autograd.grad(slope, t)
    at = ctx.mpf(a)
    terms = ctx.zeta(2, at), -2 * (at - a0) * ctx.zeta(3, at)
    assert bend.item() == pytest.approx(float(sum(terms)), abs=1e-13 * float(max(abs(x) for x in terms)))


# Dtypes


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(half):
    a, b = (torch.tensor([[0.3, 2.0], [60.0, 500.0]]) * f for f in (1.0, 0.1))
    a, b = (x.to(half) for x in (a, b))
    for f in (inverse_gamma_mode, inverse_gamma_log_mean, inverse_gamma_precision):
        assert f(a, b).dtype == torch.float32
        assert torch.equal(f(a, b), f(a.float(), b.float()))
    got = inverse_gamma_kl(a, b, 59.5, 6.05)
    assert got.dtype == torch.float32
    assert torch.equal(got, inverse_gamma_kl(a.float(), b.float(), 59.5, 6.05))
    x = a.clone().requires_grad_()
    digamma(x).sum().backward()
    y = a.float().requires_grad_()
    digamma(y).sum().backward()
    assert torch.equal(digamma(x), digamma(y))
    assert torch.equal(x.grad, y.grad.to(half))


def test_autocast_does_not_change_results():
    a, b = torch.rand(2, 3) + 0.1, torch.rand(2, 3) + 0.1
    outside = inverse_gamma_kl(a, b, 59.5, 6.05), digamma(a)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = inverse_gamma_kl(a, b, 59.5, 6.05), digamma(a)
    for x, y in zip(outside, inside, strict=True):
        assert y.dtype == torch.float32
        assert torch.equal(x, y)


def test_narrow_keeps_float64():
    for dtype, expected in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
    ):
        x = torch.ones(2, dtype=dtype)
        assert narrow(x).dtype == expected
        assert narrow(x.double(), x).dtype == expected
