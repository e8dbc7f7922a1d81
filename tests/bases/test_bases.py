"""Base distributions compared with torch, scipy and numpy, and their gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from semflow.bases import Base, SemanticGaussian, StandardNormal
from semflow.errors import ConfigError, ShapeError
from semflow.functional import FORMS, normal_log_odds, normal_log_prob
from semflow.nn import Statistics

channel_counts, seeds = st.sampled_from([1, 2, 5, 64]), st.integers(0, 2**32)
all_means = st.tuples(st.floats(-2, 2), st.floats(-2, 2)).filter(lambda m: m[0] != m[1])


class Case:
    """Latents (2, C, 3, 4) with inverse-gamma statistics and a mask with normal and anomalous locations."""

    def __init__(self, channels=5, seed=0, shifts=False, dtype=torch.float64):
        rng = np.random.default_rng(seed)

        def normal(c):
            return torch.from_numpy(rng.normal(size=(2, c, 3, 4))).to(dtype).requires_grad_()

        def positive():
            return torch.from_numpy(np.exp(rng.normal(size=(2, 1, 3, 4)))).to(dtype).requires_grad_()

        self.z, self.alpha, self.beta = normal(channels), positive(), positive()
        self.shifts = (normal(1), normal(1)) if shifts else (None, None)
        self.mask = torch.from_numpy(rng.random((2, 3, 4)) < 0.5)
        self.mask[0, 0, :2] = torch.tensor([True, False])

    @property
    def inferred(self):
        return Statistics(self.beta, self.alpha, *self.shifts)

    @property
    def known(self):
        return Statistics(self.beta, None, *self.shifts)


def test_missing_methods_raise_type_error():
    z = torch.zeros(1, 2, 3, 3)
    with pytest.raises(TypeError, match="Base must define log_prob"):
        Base().log_prob(z)
    with pytest.raises(TypeError, match="StandardNormal must define log_odds"):
        StandardNormal().log_odds(z)


# StandardNormal


@given(channel_counts, seeds, st.floats(0.01, 10))
@settings(max_examples=20)
def test_standard_normal_matches_torch(channels, seed, size):
    case = Case(channels, seed)
    z = case.z.detach() * size
    zeros = torch.zeros_like(z.movedim(1, -1))
    normal = torch.distributions.Normal(zeros, torch.ones_like(zeros), validate_args=False)
    each = torch.distributions.Independent(normal, 1, validate_args=False)
    base, expected = StandardNormal(), each.log_prob(z.movedim(1, -1))
    assert torch.allclose(base.log_prob(z), expected, rtol=1e-12)
    assert torch.equal(base.log_prob(z, case.inferred, case.mask), base.log_prob(z))  # statistics and mask are ignored
    assert torch.allclose(base.log_prob(z.float()), expected.float(), rtol=1e-5)
    assert base.log_prob(z.bfloat16()).dtype == torch.float32
    assert torch.equal(base.log_prob(z.bfloat16()), base.log_prob(z.bfloat16().float()))


# SemanticGaussian, Eq. 5 to 8


@given(channel_counts, seeds, all_means, st.sampled_from(FORMS), st.booleans())
@settings(max_examples=40)
def test_mask_selects_the_mean_of_each_location(channels, seed, means, form, shifts):
    case, base = Case(channels, seed, shifts), SemanticGaussian(*means, form).train()
    other = SemanticGaussian(means[1], means[0], form).train()
    swapped = Statistics(case.beta, case.alpha, *reversed(case.shifts))
    for statistics, exchanged in ((case.inferred, swapped), (case.known, swapped._replace(alpha=None))):
        normal, anomalous = base.log_prob(case.z, statistics), other.log_prob(case.z, exchanged)
        if form == "reference" and statistics.alpha is not None:
            anomalous = SemanticGaussian(means[1], means[0], "mode").log_prob(case.z, exchanged)
        got = base.log_prob(case.z, statistics, case.mask)
        assert torch.allclose(got, torch.where(case.mask, anomalous, normal), rtol=1e-12, atol=1e-12)
        nothing, everything = torch.zeros_like(case.mask), torch.ones_like(case.mask)
        assert torch.allclose(base.log_prob(case.z, statistics, nothing), normal, rtol=1e-12, atol=1e-12)
        assert torch.allclose(base.log_prob(case.z, statistics, everything), anomalous, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
@pytest.mark.parametrize("form", FORMS)
def test_mask_may_have_any_dtype(dtype, form):
    case, base = Case(), SemanticGaussian(form=form)
    expected = base.log_prob(case.z, case.inferred, case.mask)
    assert torch.equal(base.log_prob(case.z, case.inferred, case.mask.to(dtype)), expected)
    if dtype == torch.float32:
        assert torch.equal(base.log_prob(case.z, case.inferred, case.mask * 0.3), expected)


@given(channel_counts, seeds, all_means)
@settings(max_examples=25)
def test_semantic_gaussian_matches_numpy(channels, seed, means):
    """Eq. 5 with the exact form of Eq. 6 and 7, location by location."""
    case = Case(channels, seed)
    got = SemanticGaussian(*means).log_prob(case.z, case.inferred, case.mask).detach().numpy()
    odds = SemanticGaussian(*means).log_odds(case.z, case.inferred).detach().numpy()
    z, a, b = (x.detach().numpy() for x in (case.z, case.alpha, case.beta))
    for i in np.ndindex(2, 3, 4):
        where = (i[0], slice(None), *i[1:])
        alpha, beta = a[where].item(), b[where].item()
        uncertain = np.log(2 * np.pi) + np.log(beta) - special.digamma(alpha)
        normal, anomalous = (
            -channels / 2 * uncertain - alpha / (2 * beta) * ((z[where] - mean) ** 2).sum() for mean in means
        )
        assert got[i] == pytest.approx(anomalous if case.mask[i] else normal, rel=1e-10, abs=1e-10)
        assert odds[i] == pytest.approx(normal - anomalous, rel=1e-10, abs=1e-11 * (abs(normal) + abs(anomalous)))


@given(channel_counts, seeds, all_means)
@settings(max_examples=25)
def test_known_variance_gives_a_normal_and_is_the_limit_of_all_forms(channels, seed, means):
    case, base = Case(channels, seed), SemanticGaussian(*means)
    z, variance = (x.detach().numpy() for x in (case.z, case.beta))
    normal, anomalous = (stats.norm.logpdf(z, m, np.sqrt(variance)).sum(1) for m in means)
    expected = np.where(case.mask.numpy(), anomalous, normal)
    for form in FORMS:  # the form applies to inverse-gamma variances only
        base_of_form = SemanticGaussian(*means, form).train()
        got = base_of_form.log_prob(case.z, case.known, case.mask).detach().numpy()
        assert got == pytest.approx(expected, rel=1e-10, abs=1e-10)
        odds = base_of_form.log_odds(case.z, case.known).detach().numpy()
        assert odds == pytest.approx(normal - anomalous, rel=1e-8, abs=1e-9 * channels)
    sure = Statistics(case.beta * 1e6, torch.full_like(case.alpha, 1e6))
    got = base.log_prob(case.z, sure, case.mask).detach().numpy()
    assert got == pytest.approx(expected - channels / 4e6, rel=1e-9, abs=1e-9)


@given(channel_counts, seeds, all_means, st.sampled_from(FORMS))
@settings(max_examples=25)
def test_shifts_are_added_to_the_means(channels, seed, means, form):
    case, base = Case(channels, seed, shifts=True), SemanticGaussian(*means, form).train()
    normal, anomalous = (mean + shift for mean, shift in zip(means, case.shifts, strict=True))
    likelihood = normal_log_prob(case.z, case.alpha, case.beta, normal, form)
    assert torch.allclose(base.log_prob(case.z, case.inferred), likelihood, rtol=1e-12)
    odds = normal_log_odds(case.z, case.alpha, case.beta, normal, anomalous, form)
    assert torch.allclose(base.log_odds(case.z, case.inferred), odds, rtol=1e-12)
    assert not torch.allclose(odds, base.log_odds(case.z, Statistics(case.beta, case.alpha)))
    gradients = torch.autograd.grad(base.log_prob(case.z, case.inferred, case.mask).sum(), case.shifts)
    assert ((gradients[0][:, 0] != 0) == ~case.mask).all()
    assert ((gradients[1][:, 0] != 0) == case.mask).all()


@pytest.mark.parametrize("form", FORMS)
def test_log_odds_are_the_difference_of_log_probabilities(form):
    case, base = Case(64, shifts=True), SemanticGaussian(0.0, 1.5, form).train()
    swapped = SemanticGaussian(1.5, 0.0, form).train()
    exchanged = Statistics(case.beta, case.alpha, *reversed(case.shifts))
    odds = base.log_odds(case.z, case.inferred)
    assert torch.allclose(odds, base.log_prob(case.z, case.inferred) - swapped.log_prob(case.z, exchanged), rtol=1e-9)
    certain = base.log_prob(case.z, case.known) - swapped.log_prob(case.z, exchanged._replace(alpha=None))
    assert torch.allclose(base.log_odds(case.z, case.known), certain, rtol=1e-9)


def test_reference_form_uses_the_mode_in_evaluation():
    case = Case(8)
    base = SemanticGaussian(form="reference")

    def likelihood(form):
        return normal_log_prob(case.z, case.alpha, case.beta, 0.0, form)

    assert torch.equal(base.train().log_prob(case.z, case.inferred), likelihood("reference"))
    assert torch.equal(base.eval().log_prob(case.z, case.inferred), likelihood("mode"))
    variance = (case.beta / (case.alpha + 1))[:, 0].detach().numpy()
    expected = stats.norm.logpdf(case.z.detach().numpy(), 0, np.sqrt(variance)[:, None]).sum(1)
    assert base.log_prob(case.z, case.inferred).detach().numpy() == pytest.approx(expected, rel=1e-10)
    for form in ("exact", "paper", "marginal", "mode"):  # the others are the same in both
        same = SemanticGaussian(form=form)
        trained, tested = (same.train(mode).log_prob(case.z, case.inferred) for mode in (True, False))
        assert torch.equal(trained, tested)


@pytest.mark.parametrize("form", FORMS)
def test_statistics_have_gradients(form):
    """In the reference form, statistics have gradients at normal locations only."""
    case, base = Case(8), SemanticGaussian(form=form).train()
    log_p = base.log_prob(case.z, case.inferred, case.mask)
    for leaf in (case.alpha, case.beta):
        (gradient,) = torch.autograd.grad(log_p.sum(), leaf, retain_graph=True)
        reached = (gradient != 0)[:, 0]
        assert torch.equal(reached, ~case.mask if form == "reference" else torch.ones_like(case.mask))
    (gradient,) = torch.autograd.grad(log_p.sum(), case.z)
    assert (gradient != 0).all()
    assert torch.autograd.gradcheck(lambda z, a, b: base.log_odds(z, Statistics(b, a)), (case.z, case.alpha, case.beta))


def test_means_and_variances_are_not_rounded():
    """The mean 0.3 is not rounded to float32, and bfloat16 input is computed in float32."""
    case, base = Case(5), SemanticGaussian(0.1, 0.3)
    everywhere = torch.ones_like(case.mask)
    got = base.log_prob(case.z, case.known, everywhere).detach().numpy()
    expected = stats.norm.logpdf(case.z.detach().numpy(), 0.3, np.sqrt(case.beta.detach().numpy())).sum(1)
    assert got == pytest.approx(expected, rel=1e-13)
    half = Case(64, shifts=True, dtype=torch.bfloat16)
    leaves = [half.z, half.beta, half.alpha, *half.shifts]
    wide = [x.detach().float() for x in leaves]
    for alpha in (0, 1):
        narrow, same = (Statistics(b, a if alpha else None, n, m) for _, b, a, n, m in (leaves, wide))
        for got, expected in (
            (base.log_prob(half.z, narrow, half.mask), base.log_prob(wide[0], same, half.mask)),
            (base.log_odds(half.z, narrow), base.log_odds(wide[0], same)),
        ):
            assert got.dtype == torch.float32
            assert torch.equal(got, expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(base.log_prob(half.z, narrow, half.mask), base.log_prob(wide[0], same, half.mask))


def test_images_are_independent():
    case, base = Case(5, shifts=True), SemanticGaussian()
    together = base.log_prob(case.z, case.inferred, case.mask)
    for i in range(2):
        alone = Statistics(*(None if x is None else x[i : i + 1] for x in case.inferred))
        assert torch.equal(base.log_prob(case.z[i : i + 1], alone, case.mask[i : i + 1])[0], together[i])


def test_bases_have_no_state():
    for base in (StandardNormal(), SemanticGaussian()):
        assert not list(base.parameters())
        assert not list(base.buffers())
    assert repr(SemanticGaussian(0.0, 1.5, "marginal")) == (
        "SemanticGaussian(normal_mean=0.0, anomaly_mean=1.5, form=marginal)"
    )


def test_semantic_gaussian_rejects_invalid_arguments():
    case, base = Case(), SemanticGaussian()
    with pytest.raises(ConfigError, match=r"^form must be one of exact, .*got 'plain'"):
        SemanticGaussian(form="plain")
    with pytest.raises(ConfigError, match=r"^anomaly_mean must differ from normal_mean, but got 1.0"):
        SemanticGaussian(1.0, 1.0)
    for method in (base.log_prob, base.log_odds):
        with pytest.raises(ShapeError, match=r"^statistics must be given"):
            method(case.z)
    for wrong in (case.mask[:1], case.mask[:, None], case.mask[..., :3]):
        with pytest.raises(ShapeError, match=r"^anomaly_mask must be \(B, H, W\) = \(2, 3, 4\), but got"):
            base.log_prob(case.z, case.inferred, wrong)
