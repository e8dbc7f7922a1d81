"""The base as torch distributions, compared with scipy, quadrature and quantile functions."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch.distributions import (
    Categorical,
    Cauchy,
    Distribution,
    Independent,
    InverseGamma,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
    constraints,
    kl_divergence,
)

from semflow.bases import SemanticGaussian, SemanticNormal, variance_distribution
from semflow.errors import ConfigError, ShapeError
from semflow.functional import inverse_gamma_kl, inverse_gamma_mode, inverse_gamma_prior, normal_log_prob
from semflow.nn import Statistics

shapes, scales, seeds = st.floats(0.6, 40), st.floats(0.05, 20), st.integers(0, 2**32)
channel_counts = st.sampled_from([1, 2, 5, 64])


def double(x):
    return torch.tensor(x, dtype=torch.float64)


def draw(seed, batch=(3,), channels=5, dtype=torch.float64):
    """Draw alpha, beta (batch) and loc (batch, C)."""
    rng = np.random.default_rng(seed)
    alpha, beta = (torch.from_numpy(np.exp(rng.normal(size=batch)) + 0.1).to(dtype) for _ in range(2))
    return alpha, beta, torch.from_numpy(rng.normal(size=(*batch, channels))).to(dtype)


# Distribution of the variance


@given(shapes, scales, st.floats(0.01, 50))
@settings(max_examples=30)
def test_inverse_gamma_of_torch_matches_scipy(a, b, s):
    ours, truth = InverseGamma(double(a), double(b), validate_args=True), stats.invgamma(a, scale=b)
    assert ours.log_prob(double(s)).item() == pytest.approx(truth.logpdf(s), rel=1e-10, abs=1e-10)
    assert ours.entropy().item() == pytest.approx(truth.entropy(), rel=1e-10, abs=1e-10)
    assert ours.mean.item() == pytest.approx(truth.mean(), rel=1e-10)
    assert ours.variance.item() == pytest.approx(truth.var(), rel=1e-9)
    assert ours.mode.item() == pytest.approx(inverse_gamma_mode(double(a), double(b)).item(), rel=1e-14)
    assert ours.log_prob(ours.mode) >= ours.log_prob(ours.mode * 1.01)
    assert ours.log_prob(ours.mode) >= ours.log_prob(ours.mode / 1.01)


@given(shapes, scales, shapes, scales)
@example(2.5, 1.3, 1.7, 0.4)
@example(59.5, 6.05, 59.0, 6.0)
@settings(max_examples=30)
def test_kl_of_inverse_gammas_matches_quadrature(a, b, a0, b0):
    p, q = (InverseGamma(double(x), double(y), validate_args=False) for x, y in ((a, b), (a0, b0)))
    terms = 1 + (a + a0) * (1 + abs(math.log(a)) + abs(math.log(b / b0)) + b0 / b) + abs(math.lgamma(a0))
    expected = inverse_gamma_kl(double(a), double(b), a0, b0).item()
    assert kl_divergence(p, q).item() == pytest.approx(expected, abs=1e-13 * terms)
    narrow = kl_divergence(
        *(InverseGamma(d.concentration.float(), d.rate.float(), validate_args=False) for d in (p, q))
    )
    assert narrow.item() == pytest.approx(expected, abs=1e-6 * terms)
    truth, other = stats.invgamma(a, scale=b), stats.invgamma(a0, scale=b0)
    t, step = np.linspace(math.log(b / a) - 8 - 20 / a**0.5, math.log(b / a) + 8 + 45 / a, 6000, retstep=True)
    s = np.exp(t)
    integral = (np.exp(truth.logpdf(s) + t) * (truth.logpdf(s) - other.logpdf(s))).sum() * step
    assert expected == pytest.approx(integral, rel=1e-8, abs=1e-8 * terms)


def test_variance_distribution_has_the_kl_of_the_head():
    alpha, beta, _ = draw(0, (2, 1, 3, 4))
    prior = inverse_gamma_prior()
    variance = variance_distribution(Statistics(beta, alpha))
    assert (variance.batch_shape, variance.event_shape) == ((2, 3, 4), ())
    expected = inverse_gamma_kl(alpha, beta, *prior)[:, 0]
    given_prior = InverseGamma(*map(double, prior), validate_args=False)
    assert torch.allclose(kl_divergence(variance, given_prior), expected, rtol=1e-12)
    assert torch.equal(variance.mode, Statistics(beta, alpha).variance())
    assert variance_distribution(Statistics(beta.bfloat16(), alpha.bfloat16())).rate.dtype == torch.float32
    with pytest.raises(ConfigError, match="statistics must have alpha, but got None"):
        variance_distribution(Statistics(beta))


def quantile_slope(a, s):
    """Compute ds/da of s = F^-1(u; a) at fixed u, for an inverse gamma with scale 1."""
    u, h = stats.invgamma.sf(s, a), 1e-4
    return (stats.invgamma.isf(u, a + h) - stats.invgamma.isf(u, a - h)) / (2 * h)


@pytest.mark.parametrize("a", [0.7, 2.5, 59.5])
def test_inverse_gamma_samples_and_their_gradients(a):
    torch.manual_seed(0)
    alpha, beta = double(a).requires_grad_(), double(1.3).requires_grad_()
    s = InverseGamma(alpha, beta, validate_args=False).rsample((2000,))
    assert stats.kstest(s.detach().numpy(), stats.invgamma(a, scale=1.3).cdf).pvalue > 0.01
    for drawn in s[:20]:
        by_alpha, by_beta = torch.autograd.grad(drawn, (alpha, beta), retain_graph=True)
        assert by_beta.item() == pytest.approx(drawn.item() / 1.3, rel=1e-12)
        # torch's own approximation of the derivative is good to 5e-4
        assert by_alpha.item() == pytest.approx(1.3 * quantile_slope(a, drawn.item() / 1.3), rel=3e-3, abs=1e-6)


# Densities


@given(channel_counts, seeds)
@settings(max_examples=25)
def test_densities_and_entropies_match_scipy(channels, seed):
    alpha, beta, loc = draw(seed, (2,), channels)
    z = loc + draw(seed + 1, (2,), channels)[2]
    got = {form: SemanticNormal(alpha, beta, loc, form) for form in ("marginal", "mode")}
    known = SemanticNormal(None, beta, loc)
    for i, (a, b, m) in enumerate(zip(alpha.tolist(), beta.tolist(), loc.numpy(), strict=True)):
        student = stats.multivariate_t(m, b / a * np.eye(channels), df=2 * a)
        truths = [(got["marginal"], student.logpdf(z[i].numpy()), student.entropy())]
        for distribution, s in ((got["mode"], b / (a + 1)), (known, b)):
            normal = stats.norm(m, math.sqrt(s))
            truths.append((distribution, normal.logpdf(z[i].numpy()).sum(), normal.entropy().sum()))
        for distribution, log_p, entropy in truths:
            assert distribution.log_prob(z)[i].item() == pytest.approx(log_p, rel=1e-10, abs=1e-10)
            assert distribution.entropy()[i].item() == pytest.approx(entropy, rel=1e-10, abs=1e-10)
    for form, wide in got.items():
        narrow = SemanticNormal(alpha.float(), beta.float(), loc.float(), form)
        size = (z - loc).square().sum(-1) * (1 + alpha) / beta + channels
        assert ((narrow.log_prob(z.float()) - wide.log_prob(z)).abs() < 1e-5 * size).all()
        assert torch.allclose(narrow.entropy().double(), wide.entropy(), rtol=1e-5, atol=1e-5)
        assert narrow.log_prob(z.float()).dtype == narrow.rsample().dtype == narrow.entropy().dtype == torch.float32


@pytest.mark.parametrize(("a", "b"), [(0.7, 0.3), (2.5, 1.3), (20.0, 5.0)])
def test_rejected_forms_do_not_integrate_to_one(a, b):
    def total(form):
        def density(z):
            return normal_log_prob(double([[z]]), double([[a]]), double([[b]]), 0.0, form).exp().item()

        return 2 * integrate.quad(density, 0, math.inf)[0]

    assert total("marginal") == pytest.approx(1, abs=1e-7)
    assert total("mode") == pytest.approx(1, abs=1e-7)
    for form in ("exact", "paper", "reference"):
        assert abs(total(form) - 1) > 0.01
        with pytest.raises(ConfigError, match=f"^form must be marginal or mode, but got '{form}'"):
            SemanticNormal(a, b, torch.zeros(1), form)
    assert total("exact") < 1


@given(st.sampled_from([1, 2, 8]), seeds)
@settings(max_examples=20)
def test_expected_log_prob_matches_quadrature(channels, seed):
    alpha, beta, loc = (x[0] for x in draw(seed, (1,), channels))
    z = loc + draw(seed + 1, (1,), channels)[2][0]
    base, a, b = SemanticNormal(alpha, beta, loc), alpha.item(), beta.item()
    t, step = np.linspace(math.log(b / a) - 6 - 20 / a**0.5, math.log(b / a) + 6 + 45 / a, 8000, retstep=True)
    s = np.exp(t)
    log_n = stats.norm.logpdf(z.numpy()[:, None], loc.numpy()[:, None], np.sqrt(s)).sum(0)
    integral = (np.exp(stats.invgamma.logpdf(s, a, scale=b) + t) * log_n).sum() * step
    assert base.expected_log_prob(z).item() == pytest.approx(integral, rel=1e-8, abs=1e-8)
    assert base.expected_log_prob(z) < base.log_prob(z)
    known = SemanticNormal(None, beta, loc)
    assert torch.equal(known.expected_log_prob(z), known.log_prob(z))


@given(seeds, st.sampled_from(["exact", "marginal", "mode"]), st.booleans())
@settings(max_examples=20)
def test_semantic_normal_matches_semantic_gaussian(seed, form, known):
    alpha, beta, _ = draw(seed, (2, 1, 3, 4))
    z = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 6, 3, 4)))
    shift = draw(seed + 1, (2, 1, 3), 4)[2]
    statistics = Statistics(beta, None if known else alpha, shift)
    base = SemanticGaussian(0.25, 1.5, form)
    for mean, mask in ((0.25 + shift, torch.zeros(2, 3, 4)), (1.5, torch.ones(2, 3, 4))):
        density = "mode" if form == "mode" else "marginal"
        one = SemanticNormal.from_statistics(statistics, 6, mean, density)
        assert (one.batch_shape, one.event_shape) == ((2, 3, 4), (6,))
        got = (one.expected_log_prob if form == "exact" else one.log_prob)(z.movedim(1, -1))
        assert torch.allclose(got, base.log_prob(z, statistics, mask), rtol=1e-12, atol=1e-12)


# Moments, samples, gradients


def test_moments_match_student_t():
    alpha = double([0.3, 0.5, 0.51, 1.0, 1.5, 30.0])
    beta, loc = double(0.7), double([1.0]).expand(6, 1)
    base, truth = SemanticNormal(alpha, beta, loc), StudentT(2 * alpha, 1.0, (beta / alpha).sqrt(), validate_args=False)
    assert torch.allclose(base.mean[:, 0], truth.mean, equal_nan=True)
    assert torch.allclose(base.variance[:, 0], truth.variance, equal_nan=True, rtol=1e-12)
    assert torch.isnan(base.mean).flatten().tolist() == [True, True, False, False, False, False]
    assert torch.isinf(base.variance).flatten().tolist() == [False, False, True, True, False, False]
    assert torch.equal(base.mode, loc)
    mode, known = SemanticNormal(alpha, beta, loc, "mode"), SemanticNormal(None, beta, loc)
    assert torch.allclose(mode.variance[:, 0], beta / (alpha + 1), rtol=1e-14)
    assert torch.equal(known.variance, beta.expand(6, 1))
    assert torch.equal(mode.mean, loc)
    a = double([1.5]).requires_grad_()  # the branch that is not taken must not give NaN
    SemanticNormal(torch.cat([a, double([1.0])]), beta, loc[:2]).variance[0].sum().backward()
    assert a.grad.item() == pytest.approx(-0.7 / 0.5**2)


@pytest.mark.parametrize("form", ["marginal", "mode", None])
@pytest.mark.parametrize("a", [0.7, 3.0, 59.5])
def test_samples_follow_the_density(form, a):
    torch.manual_seed(1)
    channels, b, loc = 3, 0.8, double([0.0, 1.0, -2.0])
    base = SemanticNormal(None if form is None else a, b, loc, form or "mode")
    z = base.sample((2000,))
    assert z.shape == (2000, 3)
    if form == "marginal":  # channels share the variance: |z|^2 / C over its scale is F distributed
        axis, square = stats.t(2 * a, scale=math.sqrt(b / a)), stats.f(channels, 2 * a, scale=channels * b / a)
    else:
        s = b if form is None else b / (a + 1)
        axis, square = stats.norm(scale=math.sqrt(s)), stats.chi2(channels, scale=s)
    centered = (z - loc).numpy()
    for c in range(channels):
        assert stats.kstest(centered[:, c], axis.cdf).pvalue > 0.01
    assert stats.kstest((centered**2).sum(1), square.cdf).pvalue > 0.01


@pytest.mark.parametrize("form", ["marginal", "mode"])
def test_sample_gradients_match_finite_differences(form):
    """For alpha, at a fixed quantile of the variance."""
    alpha, beta, loc = (x.requires_grad_() for x in draw(3, (4,), 1))

    def sample(alpha, beta, loc):
        torch.manual_seed(5)
        return SemanticNormal(alpha, beta, loc, form).rsample((2,))

    assert torch.autograd.gradcheck(lambda b, m: sample(alpha.detach(), b, m), (beta, loc))
    if form == "mode":
        assert torch.autograd.gradcheck(lambda a: sample(a, beta.detach(), loc.detach()), (alpha,))
        return
    z = sample(alpha, beta, loc)
    torch.manual_seed(5)
    noise = torch.randn(z.shape, dtype=z.dtype)
    s = ((z - loc) / noise).detach()[..., 0] ** 2
    for i in np.ndindex(2, 4):
        (got,) = torch.autograd.grad(z[(*i, 0)], alpha, retain_graph=True)
        b = beta[i[1]].item()
        slope = b * quantile_slope(alpha[i[1]].item(), s[i].item() / b)
        expected = noise[(*i, 0)].item() / (2 * s[i].sqrt().item()) * slope
        assert got[i[1]].item() == pytest.approx(expected, rel=3e-3, abs=1e-6)


def test_density_gradients_match_finite_differences():
    leaves = [x.requires_grad_() for x in draw(4, (3,), 4)]
    z = draw(5, (3,), 4)[2].requires_grad_()
    for form in ("marginal", "mode"):
        for method in ("log_prob", "expected_log_prob"):
            assert torch.autograd.gradcheck(
                lambda z, *p, form=form, method=method: getattr(SemanticNormal(*p, form), method)(z), (z, *leaves)
            )
        assert torch.autograd.gradcheck(lambda *p, form=form: SemanticNormal(*p, form).entropy(), leaves)


# Divergences


@given(seeds, st.sampled_from(["marginal", "mode"]))
@settings(max_examples=15)
def test_kl_from_a_normal_matches_quadrature(seed, form):
    (alpha, beta, loc), (_, variance, other) = draw(seed, (1,), 1), draw(seed + 1, (1,), 1)
    alpha = alpha + 1.5  # tails that quadrature reaches
    p, q = SemanticNormal(alpha, beta, loc, form), SemanticNormal(None, variance, other)
    a, b, m = alpha.item(), beta.item(), loc.item()
    truth = stats.t(2 * a, m, math.sqrt(b / a)) if form == "marginal" else stats.norm(m, math.sqrt(b / (a + 1)))
    normal = stats.norm(other.item(), math.sqrt(variance.item()))

    def integrand(t):  # z = m + sinh t: both tails within reach
        z = m + np.sinh(t)
        return np.exp(truth.logpdf(z)) * (truth.logpdf(z) - normal.logpdf(z)) * np.cosh(t)

    integral = integrate.quad(integrand, -25, 25, points=[0], limit=400, epsabs=1e-12, epsrel=1e-12)[0]
    assert kl_divergence(p, q).item() == pytest.approx(integral, rel=1e-7, abs=1e-8)


@given(seeds, channel_counts)
@settings(max_examples=20)
def test_kl_of_normals_matches_torch(seed, channels):
    (a, b, m), (_, v, n) = draw(seed, (3,), channels), draw(seed + 1, (3,), channels)
    p, q = SemanticNormal(a, b, m, "mode"), SemanticNormal(None, v, n)
    torchs = [Independent(Normal(d.mean, d.stddev, validate_args=False), 1, validate_args=False) for d in (p, q)]
    got, expected = kl_divergence(p, q), kl_divergence(*torchs)
    assert torch.allclose(got, expected, rtol=1e-10, atol=1e-12 * channels)
    assert torch.allclose(kl_divergence(q, q), torch.zeros(3, dtype=torch.float64), atol=1e-12 * channels)
    narrow = SemanticNormal(a.float(), b.float(), m.float(), "mode")
    got = kl_divergence(narrow, SemanticNormal(None, v.float(), n.float()))
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), expected, rtol=1e-5, atol=1e-5 * channels)


@given(seeds, st.integers(1, 6), st.sampled_from(["marginal", "mode"]))
@settings(max_examples=20)
def test_kl_from_normals_of_torch(seed, channels, form):
    """Isotropic normals are compared with ours, full ones by a linear map that keeps the divergence."""
    (a, b, m), (_, v, n) = draw(seed, (3,), channels), draw(seed + 1, (3,), channels)
    p, ours = SemanticNormal(a, b, m, form), SemanticNormal(None, v, n)
    deviation = v.sqrt()[:, None].expand(3, channels)
    diagonal = Independent(Normal(n, deviation, validate_args=False), 1, validate_args=False)
    full = MultivariateNormal(n, scale_tril=torch.diag_embed(deviation), validate_args=False)
    right = kl_divergence(p, ours)
    for q in (diagonal, full):
        assert torch.allclose(kl_divergence(p, q), right, rtol=1e-10, atol=1e-11 * channels)
    # One map of z keeps the divergence: z -> T z makes p a normal of covariance s T T^T, for T T^T any covariance.
    generator = torch.Generator().manual_seed(seed)
    lower = torch.randn((channels, channels), generator=generator, dtype=torch.float64).tril(-1)
    lower = lower + torch.rand(channels, generator=generator, dtype=torch.float64).add(0.5).diag()
    turned = MultivariateNormal(n, scale_tril=lower, validate_args=False)
    p = SemanticNormal(a, b, m, "mode")
    as_torch = MultivariateNormal(m, torch.diag_embed(p.variance), validate_args=False)
    assert torch.allclose(kl_divergence(p, turned), kl_divergence(as_torch, turned), rtol=1e-8, atol=1e-8)
    assert torch.allclose(kl_divergence(turned, p), kl_divergence(turned, as_torch), rtol=1e-8, atol=1e-8)
    assert torch.allclose(kl_divergence(diagonal, p), kl_divergence(full, as_torch), rtol=1e-8, atol=1e-8)


def test_kl_of_student_t_from_full_normal_matches_samples():
    p = SemanticNormal(4.0, 2.0, torch.tensor([0.3, -0.2]))
    q = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.6], [0.6, 2.0]]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        z = p.sample((200_000,))
    ratio = p.log_prob(z) - q.log_prob(z)
    assert abs(kl_divergence(p, q) - ratio.mean()) < 4 * ratio.std() / len(ratio) ** 0.5
    loc = torch.tensor([0.3, -0.2], requires_grad=True)
    (gradient,) = torch.autograd.grad(kl_divergence(SemanticNormal(4.0, 2.0, loc), q), loc)
    assert torch.allclose(gradient, torch.linalg.solve(q.covariance_matrix, loc))  # of half of loc^T S^-1 loc


def test_kl_is_infinite_or_rejected_without_closed_form():
    student, normal = SemanticNormal(0.9, 1.0, torch.zeros(2)), SemanticNormal(None, 1.0, torch.zeros(2))
    assert kl_divergence(student, normal).item() == math.inf  # the second moment is infinite
    for error in (ConfigError, NotImplementedError):  # callers of torch catch the second
        with pytest.raises(error, match=r"^q must be a normal \(form mode\), but got a Student-t"):
            kl_divergence(normal, student)
    with pytest.raises(ShapeError, match=r"^p and q must have the same event shape, but got \(2,\), \(3,\)"):
        kl_divergence(normal, SemanticNormal(None, 1.0, torch.zeros(3)))
    full = MultivariateNormal(torch.zeros(2), torch.eye(2))
    assert kl_divergence(student, full).item() == math.inf
    with pytest.raises(NotImplementedError, match=r"^q must be a normal"):
        kl_divergence(full, student)
    for wrong in (Independent(Cauchy(torch.zeros(2), 1.0), 1), Independent(full, 0)):
        with pytest.raises(ConfigError, match=r"^q must be Independent\(Normal\(...\), 1\), but got Independent"):
            kl_divergence(normal, wrong)


# Interface of torch distributions


@pytest.mark.parametrize("form", ["marginal", "mode", None])
def test_shapes_expand_copy_and_pickle(form):
    alpha, beta, loc = draw(6, (3,), 4)
    base = SemanticNormal(None if form is None else alpha[:, None], beta, loc, form or "mode")
    assert (base.batch_shape, base.event_shape) == ((3,) if form is None else (3, 3), (4,))
    big = base.expand((2, *base.batch_shape))
    assert isinstance(big, SemanticNormal)
    assert big.batch_shape == (2, *base.batch_shape)
    assert big.loc.untyped_storage().data_ptr() == base.loc.untyped_storage().data_ptr()
    z = draw(7, big.batch_shape, 4)[2]
    assert torch.equal(big.log_prob(z), base.log_prob(z))
    assert torch.equal(big.entropy()[1], base.entropy())
    assert big.mean.shape == big.variance.shape == big.mode.shape == z.shape
    assert big.rsample((5, 1)).shape == base.rsample((5, 1, 2)).shape == (5, 1, *z.shape)
    assert base.log_prob(z[(0,) * (z.dim() - 1)]).shape == base.batch_shape
    whole = Independent(base, len(base.batch_shape), validate_args=False)
    assert torch.allclose(whole.log_prob(z[0]), base.log_prob(z[0]).sum())
    for same in (copy.deepcopy(base), pickle.loads(pickle.dumps(base))):
        assert torch.equal(same.log_prob(z), base.log_prob(z))
    for name, constraint in base.arg_constraints.items():
        assert constraint.check(getattr(base, name)).all()
    assert constraints.positive not in (c for n, c in base.arg_constraints.items() if getattr(base, n) is None)


def test_mixture_of_torch_gives_the_log_odds():
    alpha, beta, _ = draw(8, (2, 1, 3, 4))
    z = draw(9, (2, 3, 4), 6)[2]
    statistics = Statistics(beta, alpha)
    both = torch.stack([torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)])
    parts = SemanticNormal(alpha[:, 0, ..., None], beta[:, 0, ..., None], both)
    prior = Categorical(logits=torch.zeros(2, 3, 4, 2, dtype=torch.float64), validate_args=False)
    mixture = MixtureSameFamily(prior, parts, validate_args=False)
    alone = SemanticNormal.from_statistics(statistics, 6).log_prob(z)
    odds = SemanticGaussian(form="marginal").log_odds(z.movedim(-1, 1), statistics)
    posterior = torch.sigmoid(odds)  # p(normal | z) = p(z | normal) / (2 p(z))
    assert torch.allclose(alone - math.log(2) - mixture.log_prob(z), posterior.log(), rtol=1e-10, atol=1e-12)
    assert mixture.sample((2,)).shape == (2, 2, 3, 4, 6)


@pytest.mark.parametrize("default", [True, False])
def test_validation_ignores_the_default_of_torch(default):
    before = Distribution._validate_args
    try:
        Distribution.set_default_validate_args(default)
        one = torch.ones(2)
        for wrong in ((-1.0, 1.0, one), (1.0, 0.0, one), (1.0, 1.0, one * math.nan), (None, -1.0, one)):
            with pytest.raises(ValueError, match="Expected parameter"):
                SemanticNormal(*wrong)
            SemanticNormal(*wrong, validate_args=False)
        with pytest.raises(ValueError, match="within the support"):
            SemanticNormal(1.0, 1.0, one).log_prob(one * math.nan)
        quiet = SemanticNormal.from_statistics(Statistics(torch.ones(1, 1, 1, 1)), 2)
        assert quiet.log_prob(torch.full((1, 1, 1, 2), math.nan)).isnan().all()
        assert quiet.expand((2, 1, 1))._validate_args is False
    finally:
        Distribution.set_default_validate_args(before)


def test_float_dtypes_are_promoted_to_float32_or_wider():
    alpha, beta, loc = draw(10, dtype=torch.bfloat16)
    base = SemanticNormal(alpha, beta, loc)
    same = SemanticNormal(alpha.float(), beta.float(), loc.float())
    assert base.loc.dtype == torch.float32
    assert torch.equal(base.log_prob(loc * 0), same.log_prob(loc.float() * 0))
    assert SemanticNormal(alpha.double(), 0.1, loc).beta[0].item() == 0.1  # not float32's 0.1
    mixed = SemanticNormal.from_statistics(Statistics(torch.full((1, 1, 1, 1), 0.1).double()), 2, mean=0.3)
    assert mixed.loc.flatten().tolist() == [0.3, 0.3]


def test_semantic_normal_rejects_wrong_shapes():
    base = SemanticNormal(torch.ones(3), 1.0, torch.zeros(4))
    with pytest.raises(ShapeError, match=r"^alpha, beta and loc must broadcast, but got \(2,\), \(\), \(3,\)"):
        SemanticNormal(torch.ones(3), 1.0, torch.zeros(2, 4))
    for loc in (0.0, torch.tensor(0.0)):
        with pytest.raises(ShapeError, match=r"^loc must be a tensor \(..., C\), but got"):
            SemanticNormal(1.0, 1.0, loc)
    with pytest.raises(ShapeError, match=r"^value must be \(..., 4\), but got \(4, 3\)"):
        base.log_prob(torch.zeros(4, 3))
    with pytest.raises(ShapeError, match=r"^value must be \(..., 4\), but got \(\)"):
        base.log_prob(torch.tensor(0.0))
    with pytest.raises(ShapeError, match=r"^value and the distribution must broadcast, but got \(2,\), \(3,\)"):
        base.log_prob(torch.zeros(2, 4))
    statistics = Statistics(torch.ones(2, 1, 3, 4))
    with pytest.raises(ShapeError, match=r"^mean must broadcast to \(B, C, H, W\) = \(2, 6, 3, 4\), but got \(5, 2,"):
        SemanticNormal.from_statistics(statistics, 6, torch.zeros(5, 2, 6, 3, 4))
    with pytest.raises(ShapeError, match=r"^mean and statistics must broadcast"):
        SemanticNormal.from_statistics(statistics, 6, torch.zeros(2, 5, 3, 4))
