"""log p(z) with inverse-gamma variance compared with quadrature, scipy and torch distributions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import special, stats

from helpers.functional_truths import FORMS, expectation, log_variance_grid
from semflow.errors import ConfigError, ShapeError
from semflow.functional import inverse_gamma_kl, normal_log_odds, normal_log_prob

LOG_2PI = math.log(2 * math.pi)

shapes, scales = st.floats(0.5, 40), st.floats(0.05, 20)
means = st.sampled_from([0.0, 1.0, -0.7, 3])


@st.composite
def locations(draw, channels=(1, 2, 8)):
    """Draw z (C,), alpha, beta and a mean of one location."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    z = rng.normal(size=draw(st.sampled_from(channels))) * draw(st.floats(0.05, 4))
    return z, draw(shapes), draw(scales), draw(means)


def log_p(z, a, b, mean=0.0, form="exact"):
    """Compute `normal_log_prob` at one location in float64."""
    a, b = (torch.as_tensor(x, dtype=torch.float64).reshape(1, 1) for x in (a, b))
    return normal_log_prob(torch.as_tensor(z)[None], a, b, mean, form)[0]


def log_densities(z, mean, s):
    """Sum scipy's log N(z; mean, s) over channels, for every s."""
    return stats.norm.logpdf(z[:, None], mean, np.sqrt(s)).sum(0)


# Each form compared with its definition


@given(locations())
@settings(max_examples=40)
def test_exact_form_is_the_expectation_of_the_log(location):
    z, a, b, mean = location
    integral = expectation(lambda s: log_densities(z, mean, s), a, b)
    assert log_p(z, a, b, mean).item() == pytest.approx(integral, rel=1e-9, abs=1e-9)


@given(locations())
@example((np.random.default_rng(0).normal(size=512), 59.5, 6.05, 1.0))
@settings(max_examples=30)
def test_marginal_form_is_the_log_of_the_expectation(location):
    z, a, b, mean = location
    q = ((z - mean) ** 2).sum()
    t, step = log_variance_grid((a, b), (a + z.size / 2, b + q / 2))
    s = np.exp(t)
    integral = special.logsumexp(stats.invgamma.logpdf(s, a, scale=b) + t + log_densities(z, mean, s)) + np.log(step)
    assert log_p(z, a, b, mean, "marginal").item() == pytest.approx(integral, rel=1e-10, abs=1e-10)


@given(locations())
@settings(max_examples=40)
def test_marginal_form_is_a_student_t(location):
    z, a, b, mean = location
    t = stats.multivariate_t(np.full(z.size, mean), b / a * np.eye(z.size), df=2 * a)
    assert log_p(z, a, b, mean, "marginal").item() == pytest.approx(t.logpdf(z), rel=1e-10, abs=1e-10)


@given(locations())
@settings(max_examples=40)
def test_mode_form_is_a_normal_with_the_most_probable_variance(location):
    z, a, b, mean = location
    loc = torch.full((z.size,), float(mean), dtype=torch.float64)
    normal = torch.distributions.Normal(loc, math.sqrt(b / (a + 1)), validate_args=False)
    each = torch.distributions.Independent(normal, 1, validate_args=False)
    expected = each.log_prob(torch.from_numpy(z)).item()
    assert log_p(z, a, b, mean, "mode").item() == pytest.approx(expected, rel=1e-10, abs=1e-10)


@given(locations())
@settings(max_examples=40)
def test_paper_and_reference_forms_match_their_formulas(location):
    z, a, b, mean = location
    uncertain, distance = np.log(b) - special.digamma(a), ((z - mean) ** 2).sum()
    paper = -np.log(2 * np.pi) / 2 - uncertain / 2 - a / (2 * b) * distance
    reference = -z.size * np.log(2 * np.pi) / 2 - z.size * uncertain - a / (2 * b) * distance
    assert log_p(z, a, b, mean, "paper").item() == pytest.approx(paper, rel=1e-10, abs=1e-10)
    assert log_p(z, a, b, mean, "reference").item() == pytest.approx(reference, rel=1e-10, abs=1e-10)
    if z.size == 1:
        assert log_p(z, a, b, mean, "exact").item() == pytest.approx(paper, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize(
    ("channels", "a", "b", "exact", "paper"),
    [(8, 2.5, 1.3, -7.300, -2.410), (512, 59.5, 6.05, -147.31, -259.64)],
)
def test_exact_and_paper_forms_match_monte_carlo_estimates(channels, a, b, exact, paper):
    """Two averages of log N over samples of the variance, which determine each other for any z."""
    q = (paper + (LOG_2PI + math.log(b) - special.digamma(a)) / 2) * -2 * b / a
    z = np.full(channels, math.sqrt(q / channels))
    assert log_p(z, a, b, form="paper").item() == pytest.approx(paper, rel=1e-12)
    assert log_p(z, a, b, form="exact").item() == pytest.approx(exact, abs=0.01)


# Relations between the forms


@given(locations((1, 2, 8, 512)))
@settings(max_examples=40)
def test_marginal_form_is_at_least_the_exact_form(location):
    """Jensen's inequality: log E is at least E log."""
    z, a, b, mean = location
    exact, marginal = log_p(z, a, b, mean), log_p(z, a, b, mean, "marginal")
    assert (marginal - exact).item() > 0


@given(locations((1, 2, 8, 512)), st.floats(0.2, 5), st.floats(0.2, 5))
@settings(max_examples=40)
def test_elbo_is_maximal_at_the_conjugate_posterior(location, shape_factor, scale_factor):
    """E[log N] - KL is maximal at IG(a0 + C/2, b0 + q/2), where it equals the marginal likelihood."""
    z, a0, b0, mean = location
    q = ((z - mean) ** 2).sum()
    a = torch.tensor(a0 + z.size / 2, dtype=torch.float64, requires_grad=True)
    b = torch.tensor(b0 + q / 2, dtype=torch.float64, requires_grad=True)

    def bound(a, b):
        return log_p(z, a, b, mean) - inverse_gamma_kl(a, b, a0, b0)

    best = bound(a, b)
    evidence = log_p(z, a0, b0, mean, "marginal").item()
    scale = 1e-11 * (1 + abs(evidence) + a.item() * 10)
    assert best.item() == pytest.approx(evidence, abs=scale)
    best.backward()
    assert (a.grad * a).item() == pytest.approx(0, abs=scale)
    assert (b.grad * b).item() == pytest.approx(0, abs=scale)
    elsewhere = bound(a.detach() * shape_factor, b.detach() * scale_factor).item()
    distance = max(abs(math.log(shape_factor)), abs(math.log(shape_factor / scale_factor)))
    assert elsewhere < best.item() or distance < 1e-3


@given(locations(), st.floats(0.1, 10))
@settings(max_examples=25)
def test_known_variance_is_the_limit_of_the_exact_form(location, variance):
    """For large alpha at a fixed ratio, the difference from a normal is a known constant over alpha."""
    z, _, _, mean = location
    a, h, half_q = 1e6, z.size / 2, (z**2).sum() / 2
    gauss = log_densities(np.sqrt(variance) * z, 0, np.array([variance])).item()
    first_order = {"exact": -h / 2, "mode": h - half_q, "marginal": ((half_q - h) ** 2 - h) / 2}
    for form, expected in first_order.items():
        got = log_p(mean + np.sqrt(variance) * z, a, a * variance, mean, form).item()
        assert a * (got - gauss) == pytest.approx(expected, abs=1e-4 + (h + half_q) ** 3 / a), form


def test_paper_form_is_unbounded_as_a_loss():
    """If the flow scales z by k and the variance follows, the loss has no lower bound above C = 1 + 2 kl alpha_0."""
    z, weight, a0, b0 = np.random.default_rng(0).normal(size=512) * 0.3, 0.2, 59.5, 6.05

    def loss(k, form):
        fit = log_p(k * z, a0, b0 * k**2, form=form) + z.size * math.log(k)
        return (-fit + weight * inverse_gamma_kl(*(torch.tensor(x).double() for x in (a0, b0 * k**2)), a0, b0)).item()

    def slope(form):
        return (loss(1e6, form) - loss(1e3, form)) / math.log(1e3)

    assert slope("paper") == pytest.approx(1 + 2 * weight * a0 - z.size, rel=1e-3)
    assert slope("exact") == pytest.approx(2 * weight * a0, rel=1e-3)


# Log-odds


@st.composite
def pairs_of_means(draw, channels):
    """Draw two means, numbers or tensors that broadcast to (2, C, 3, 2)."""

    def one():
        shape = draw(st.sampled_from([None, (1, channels, 1, 1), (2, 1, 3, 2), (2, channels, 3, 2), ()]))
        if shape is None:
            return draw(st.floats(-2, 2))
        seed = draw(st.integers(0, 2**32))
        return torch.from_numpy(np.asarray(np.random.default_rng(seed).normal(size=shape)))

    return one(), one()


@given(st.data(), st.sampled_from([1, 2, 8, 512]), st.integers(0, 2**32), st.sampled_from(FORMS))
@settings(max_examples=60)
def test_log_odds_are_the_difference_of_log_probabilities(data, channels, seed, form):
    rng = np.random.default_rng(seed)
    z = torch.from_numpy(rng.normal(size=(2, channels, 3, 2)))
    a, b = (torch.from_numpy(np.exp(rng.uniform(-1, 4, size=(2, 1, 3, 2)))) for _ in range(2))
    normal, anomaly = data.draw(pairs_of_means(channels))
    likelihoods = [normal_log_prob(z, a, b, mean, form) for mean in (normal, anomaly)]
    odds = normal_log_odds(z, a, b, normal, anomaly, form)
    assert odds.shape == (2, 3, 2)
    assert odds.dtype == torch.float64
    scale = 1e-12 * (likelihoods[0].abs() + likelihoods[1].abs() + channels * 10)
    assert ((odds - (likelihoods[0] - likelihoods[1])).abs() <= scale).all()
    assert ((odds + normal_log_odds(z, a, b, anomaly, normal, form)).abs() <= scale).all()
    # positive where z is nearer to the normal mean
    distances = [((z - mean) ** 2).sum(1) for mean in (normal, anomaly)]
    decided = (distances[1] - distances[0]).abs() > 1e-9
    assert (odds > 0)[decided].equal((distances[1] > distances[0])[decided])


@given(locations((1, 8, 512)))
@settings(max_examples=40)
def test_log_odds_in_closed_form(location):
    z, a, b, mean = location
    gap = ((z - 1 - mean) ** 2).sum() - ((z - mean) ** 2).sum()
    marginal = (a + z.size / 2) * np.log((2 * b + ((z - 1 - mean) ** 2).sum()) / (2 * b + ((z - mean) ** 2).sum()))
    plain = a / (2 * b) * gap
    expected = {
        "exact": plain,
        "paper": plain,
        "reference": plain,
        "mode": (a + 1) / (2 * b) * gap,
        "marginal": marginal,
    }
    tensors = (torch.from_numpy(z)[None], *(torch.tensor([[x]], dtype=torch.float64) for x in (a, b)))
    for form in FORMS:
        got = normal_log_odds(*tensors, mean, mean + 1, form).item()
        assert got == pytest.approx(expected[form], rel=1e-9, abs=1e-9 * a / b * z.size), form


def test_log_odds_are_accurate_if_float32_log_probabilities_cancel():
    """At C = 2048 with a broad variance, the odds are a small difference of two large numbers."""
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.normal(size=(64, 2048))).float()
    a, b = torch.full((64, 1), 0.01), torch.full((64, 1), 1e6)
    wide = [x.double() for x in (z, a, b)]
    for form in ("exact", "reference", "marginal", "mode"):
        truth = normal_log_prob(*wide, 0.0, form) - normal_log_prob(*wide, 1.0, form)
        got = normal_log_odds(z, a, b, form=form)
        subtracted = normal_log_prob(z, a, b, 0.0, form) - normal_log_prob(z, a, b, 1.0, form)
        assert got.dtype == torch.float32
        assert ((got - truth).abs() < 1e-5 * truth.abs().mean()).all()
        assert ((subtracted - truth).abs() > 1e-4 * truth.abs().mean()).any()


def test_log_odds_are_finite_if_probabilities_underflow():
    """In the paper's setting at C = 2048, log p = -2e7, whose exponential is 0 in any precision."""
    z = torch.tensor([[3.0], [-3.0], [0.5]]).expand(3, 2048)
    a, b = torch.full((3, 1), 59.5), torch.full((3, 1), 0.05)
    odds = normal_log_odds(z, a, b)
    assert odds.tolist() == pytest.approx([59.5 / 0.05 * 2048 * -2.5, 59.5 / 0.05 * 2048 * 3.5, 0.0], rel=1e-6)


# Interface


@pytest.mark.parametrize("form", FORMS)
def test_channel_axis_may_be_any(form):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 5, 3, 4, generator=generator)
    a, b = torch.rand(2, 1, 3, 4, generator=generator) + 0.5, torch.rand(2, 1, 3, 4, generator=generator) + 0.5
    p, odds = normal_log_prob(z, a, b, form=form), normal_log_odds(z, a, b, form=form)
    assert p.shape == odds.shape == (2, 3, 4)
    for dim in (0, 2, 3, -1, -2):
        moved = [x.movedim(1, dim) for x in (z, a, b)]
        assert torch.allclose(normal_log_prob(*moved, form=form, dim=dim), p, rtol=1e-6)
        assert torch.allclose(normal_log_odds(*moved, form=form, dim=dim), odds, rtol=1e-5, atol=1e-6)
    # locations as rows, and one variance for all
    rows = [x.movedim(1, -1).flatten(0, -2) for x in (z, a, b)]
    assert torch.allclose(normal_log_prob(*rows, form=form), p.flatten(), rtol=1e-6)
    one = torch.full((1, 1, 1, 1), 2.0)
    assert torch.equal(normal_log_prob(z, one, one, form=form), normal_log_prob(z, *[one.expand_as(a)] * 2, form=form))


@pytest.mark.parametrize("function", [normal_log_prob, normal_log_odds])
def test_functions_reject_wrong_arguments(function):
    z, one = torch.zeros(2, 5, 3, 4), torch.ones(2, 1, 3, 4)
    with pytest.raises(ShapeError, match=r"^alpha must .*\(2, 5, 3, 4\).*got \(2, 5, 3, 4\)"):
        function(z, z + 1, one)
    with pytest.raises(ShapeError, match=r"^beta must .*got \(2, 3, 4\)"):
        function(z, one, one[:, 0])
    with pytest.raises(ShapeError, match=r"^alpha must .*got \(2, 1, 4\)"):
        function(z, one[:, :, 0], one)
    with pytest.raises(ConfigError, match=r"^form must be one of exact, .*'exakt'"):
        function(z, one, one, form="exakt")
