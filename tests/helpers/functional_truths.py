"""Expected results of the functional core in 40 digits, with the magnitude of their largest term.

A sum of terms cannot be better than the rounding of its largest one, so that is what errors are measured against.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import mpmath
import numpy as np
import torch
from scipy import stats

ctx = mpmath.MPContext()
ctx.dps = 40

FORMS = ("exact", "paper", "reference", "marginal", "mode")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


class Truth(NamedTuple):
    """Numbers, and the largest magnitude in the computation of each."""

    value: float | np.ndarray
    scale: float | np.ndarray


def total(terms: Iterable, scales: Iterable = ()) -> Truth:
    terms = list(terms)
    return Truth(float(sum(terms)), float(max(abs(t) for t in (*terms, *scales))))


def sum_of_squares(x: np.ndarray):
    return ctx.mpf(math.fsum(x * x))


def assert_close(got, truth, tolerance, what=""):
    """Assert that every number of `got` is within tolerance times the scale of its truth."""
    got = got.detach().double().cpu().flatten().numpy()
    value, scale = (np.atleast_1d(x) for x in truth)
    assert got.shape == value.shape
    excess = np.abs(got - value) - tolerance * scale
    i = np.argmax(excess)
    assert np.all(excess <= 0), f"{what}: {got[i]!r} for {value[i]!r}, whose terms are up to {scale[i]:.2g}"


def kl(a, b, a0, b0):
    """Compute Eq. 4 and its derivatives: {"value", "alpha", "beta"}."""
    a, b, a0, b0 = (ctx.mpf(x) for x in (a, b, a0, b0))
    psi, trigamma = ctx.digamma(a), ctx.zeta(2, a)
    terms = [(a - a0) * psi, ctx.loggamma(a0), -ctx.loggamma(a), a0 * ctx.log(b), -a0 * ctx.log(b0), a * b0 / b, -a]
    return {
        "value": total(terms),
        "alpha": total([(a - a0) * trigamma, b0 / b, -1], [psi]),  # psi occurs twice, with both signs
        "beta": total([a0 / b, -a * b0 / b**2]),
    }


def log_prob(form, centered, a, b, size):
    """Compute log p of one location and its derivatives: {"value", "alpha", "beta", "z"}, the last over all channels.

    `centered` is z - mean and `size` the magnitude that its rounding is relative to, both per channel.
    """
    a, b, c = ctx.mpf(a), ctx.mpf(b), len(centered)
    q, q_size, log_2pi = sum_of_squares(centered), sum_of_squares(size), ctx.log(2 * ctx.pi)
    h = ctx.mpf(c) / 2
    if form == "marginal":
        value = total(
            [
                ctx.loggamma(a + h) - ctx.loggamma(a),
                -h * log_2pi,
                -h * ctx.log(b),
                -(a + h) * ctx.log1p(q / (2 * b)),
            ],
            [(a + h) * q_size / (2 * b + q)],
        )
        alpha = total([ctx.digamma(a + h) - ctx.digamma(a), -ctx.log1p(q / (2 * b))], [q_size / (2 * b + q)])
        beta = total([-h / b, (a + h) * q / (b * (2 * b + q))], [(a + h) * q_size / (b * (2 * b + q))])
        slope, bend = -(a + h) / (2 * b + q), q_size / (2 * b + q)
    elif form == "mode":
        rate = (a + 1) / (2 * b)
        value = total([-h * log_2pi, -h * ctx.log(b), h * ctx.log(a + 1), -rate * q], [rate * q_size])
        alpha = total([h / (a + 1), -q / (2 * b)], [q_size / (2 * b)])
        beta = total([-h / b, rate * q / b], [rate * q_size / b])
        slope, bend = -rate, 0
    else:
        of_2pi, of_variance = {"exact": (h, h), "paper": (0.5, 0.5), "reference": (h, 2 * h)}[form]
        rate = a / (2 * b)
        value = total(
            [-of_2pi * log_2pi, -of_variance * ctx.log(b), of_variance * ctx.digamma(a), -rate * q], [rate * q_size]
        )
        alpha = total([of_variance * ctx.zeta(2, a), -q / (2 * b)], [q_size / (2 * b)])
        beta = total([-of_variance / b, rate * q / b], [rate * q_size / b])
        slope, bend = -rate, 0
    slope, bend = float(slope), float(bend)
    z = Truth(2 * slope * centered, abs(2 * slope) * (size + bend * np.abs(centered)))
    return {"value": value, "alpha": alpha, "beta": beta, "z": z}


def log_odds(form, z, normal, anomaly, a, b):
    """Compute log p(z | normal) - log p(z | anomalous) of one location and its derivatives, like `log_prob`."""
    a, b, near, far, gap = ctx.mpf(a), ctx.mpf(b), z - normal, z - anomaly, normal - anomaly
    qn, qa = sum_of_squares(near), sum_of_squares(far)
    difference = ctx.mpf(math.fsum(gap * (near + far)))
    size = ctx.mpf(math.fsum(np.abs(gap) * (2 * np.abs(z) + np.abs(normal) + np.abs(anomaly))))
    if form == "marginal":
        k = a + ctx.mpf(len(z)) / 2
        low_n, low_a, high = 2 * b + qn, 2 * b + qa, 2 * b + max(qn, qa)
        ratio, rounding = ctx.log(low_a / low_n), qn / low_n + qa / low_a + size / high
        slope_n, slope_a, slope = (float(2 * k / x) for x in (low_n, low_a, high))
        pull, push = slope_a * far, slope_n * near
        return {
            "value": total([k * ratio], [k * rounding]),
            "alpha": total([ratio], [rounding]),
            "beta": total([2 * k / low_a, -2 * k / low_n], [k * size / (b * high)]),
            "z": Truth(pull - push, np.abs(pull) + np.abs(push) + slope * (np.abs(near) + np.abs(far))),
        }
    rate = (a + 1 if form == "mode" else a) / (2 * b)
    return {
        "value": total([rate * difference], [rate * size]),
        "alpha": total([difference / (2 * b)], [size / (2 * b)]),
        "beta": total([-rate * difference / b], [rate * size / b]),
        "z": Truth(2 * float(rate) * gap, 2 * float(rate) * (np.abs(normal) + np.abs(anomaly))),
    }


def log_variance_grid(*shapes_and_scales):
    """Return a grid of t = log s that covers the mass of the given inverse gammas, and its step.

    On it the trapezoidal rule converges exponentially: the densities are smooth and vanish at both ends.
    """
    low = min(np.log(b / a) - 6 - 20 / np.sqrt(a) for a, b in shapes_and_scales)
    high = max(np.log(b / a) + 6 + 45 / a for a, b in shapes_and_scales)
    return np.linspace(low, high, int((high - low) / 0.02) + 2, retstep=True)


def expectation(f, a, b):
    """Compute E[f(s)] for s ~ IG(a, b) by quadrature of scipy's density."""
    t, step = log_variance_grid((a, b))
    s = np.exp(t)
    weight = np.exp(stats.invgamma.logpdf(s, a, scale=b) + t) * step
    assert abs(weight.sum() - 1) < 1e-11
    return float((weight * f(s)).sum())
