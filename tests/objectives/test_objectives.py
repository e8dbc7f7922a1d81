"""The objective compared with numpy, and properties that training relies on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from semflow.bases import SemanticGaussian, StandardNormal
from semflow.errors import ConfigError, ShapeError
from semflow.functional import inverse_gamma_kl, inverse_gamma_prior
from semflow.nn import Statistics
from semflow.objectives import PRESETS, Objective, log_likelihood

PRIOR = inverse_gamma_prior()
EVENTS = ("location", "sample")
# Includes B = H = W, where a log_det (B,) broadcasts against (B, H, W).
SIZES = [(2, 5, 3, 4), (3, 2, 3, 3), (1, 8, 2, 1)]

sizes, seeds, events = st.sampled_from(SIZES), st.integers(0, 2**32), st.sampled_from(EVENTS)
weights = st.floats(0, 5)


class Case:
    """Arguments of an objective for one scale, in float64; every leaf has a gradient."""

    def __init__(self, size=SIZES[0], seed=0, event="location"):
        rng = np.random.default_rng(seed)
        batch, _, *grid = size

        def leaf(values):
            return torch.from_numpy(values).requires_grad_()

        self.event = event
        self.z = leaf(rng.normal(size=size))
        self.log_det = leaf(rng.normal(size=(batch, *grid) if event == "location" else batch) * 3)
        self.alpha, self.beta = (leaf(np.exp(rng.normal(size=(batch, 1, *grid)))) for _ in range(2))
        self.mask = torch.from_numpy(rng.random((batch, *grid)) < 0.4)

    def statistics(self, part=slice(None)):
        a, b = self.alpha[part], self.beta[part]
        return Statistics(b, a, kl=inverse_gamma_kl(a, b, *PRIOR)[:, 0])

    def __call__(self, objective, base=None, mask=True, part=slice(None), ignore=None):
        given_mask = self.mask[part] if mask else None
        base = SemanticGaussian() if base is None else base
        return objective(self.z[part], self.log_det[part], self.event, base, self.statistics(part), given_mask, ignore)

    def leaves(self):
        return self.z, self.log_det, self.alpha, self.beta

    def numpy(self):
        """Compute log p, log-odds, KL (Eq. 6, 7, 8 and 4) and log_det of each location with scipy."""
        z, a, b = self.z.detach().numpy(), self.alpha.detach().numpy()[:, 0], self.beta.detach().numpy()[:, 0]
        channels = z.shape[1]
        normal, anomalous = (
            -channels / 2 * (np.log(2 * np.pi) + np.log(b) - special.digamma(a))
            - a / (2 * b) * ((z - mean) ** 2).sum(1)
            for mean in (0, 1)
        )
        a0, b0 = PRIOR
        kl = (
            (a - a0) * special.digamma(a)
            - special.gammaln(a)
            + special.gammaln(a0)
            + a0 * np.log(b / b0)
            + a * (b0 - b) / b
        )
        return np.where(self.mask, anomalous, normal), normal - anomalous, kl, self.log_det.detach().numpy()


def cross_entropy(odds, anomalous):
    """-log s where normal, -log (1 - s) where anomalous, s = sigmoid(odds)."""
    return np.where(anomalous, -special.log_expit(-odds), -special.log_expit(odds))


# Change of variables


@given(sizes, seeds)
@settings(max_examples=20)
def test_log_likelihood_sums_over_the_event(size, seed):
    rng = np.random.default_rng(seed)
    log_p = rng.normal(size=(size[0], *size[2:]))
    for event in EVENTS:
        log_det = rng.normal(size=log_p.shape if event == "location" else size[0])
        got = log_likelihood(torch.from_numpy(log_p), torch.from_numpy(log_det), event).numpy()
        expected = log_p + log_det if event == "location" else log_p.sum((1, 2)) + log_det
        assert got.shape == log_det.shape
        assert got == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("event", EVENTS)
def test_log_det_of_another_event_is_rejected(event):
    """At B = H = W either log_det broadcasts."""
    per_location, per_sample = torch.zeros(3, 3, 3), torch.zeros(3)
    right, wrong = (per_location, per_sample) if event == "location" else (per_sample, per_location)
    assert log_likelihood(per_location, right, event).shape == right.shape
    for bad in (wrong, torch.zeros(3, 1, 1), torch.zeros(())):
        with pytest.raises(ShapeError, match=rf"^log_det must be .* for event '{event}', but got"):
            log_likelihood(per_location, bad, event)
        with pytest.raises(ShapeError, match=r"^log_det"):
            Objective()(torch.zeros(3, 2, 3, 3), bad, event, StandardNormal())


def test_linear_flow_gives_a_gaussian_density():
    """With x = z / k and log_det = C log k, x is distributed as N(0, 1 / k^2)."""
    x, k = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 5, 3, 4))), 3.0
    log_p = StandardNormal().log_prob(k * x)
    expected = stats.norm.logpdf(x.numpy(), 0, 1 / k).sum(1)
    each = log_likelihood(log_p, torch.full((2, 3, 4), 5 * np.log(k), dtype=torch.float64), "location")
    whole = log_likelihood(log_p, torch.full((2,), 5 * 12 * np.log(k), dtype=torch.float64), "sample")
    assert each.numpy() == pytest.approx(expected, rel=1e-12)
    assert whole.numpy() == pytest.approx(expected.sum((1, 2)), rel=1e-12)
    for event, log_det in (
        ("location", torch.full((2, 3, 4), 5 * np.log(k))),
        ("sample", torch.full((2,), 60 * np.log(k))),
    ):
        terms = Objective()(k * x, log_det.double(), event, StandardNormal())
        assert terms.nll.item() == pytest.approx(-expected.mean() / 5, rel=1e-6)  # per dimension for both events


# Terms


@given(sizes, seeds, events, weights, weights, st.sampled_from([None, 0.5, 40.0]))
@settings(max_examples=50)
def test_terms_match_numpy(size, seed, event, bce, kl, temperature):
    case, channels = Case(size, seed, event), size[1]
    got = case(Objective(bce, kl, temperature))
    log_p, odds, divergence, log_det = case.numpy()
    nll = -(log_p.mean() + (log_det.mean() if event == "location" else log_det.mean() / (size[2] * size[3]))) / channels
    entropy = cross_entropy(odds / (channels if temperature is None else temperature), case.mask.numpy()).mean()
    divergence = divergence.mean() / channels
    assert got.nll.item() == pytest.approx(nll, rel=1e-10, abs=1e-10)
    assert got.kl.item() == pytest.approx(divergence, rel=1e-10)
    assert got.bce.item() == pytest.approx(entropy if bce else 0.0, rel=1e-9, abs=1e-12)
    assert got.total.item() == pytest.approx(nll + bce * entropy + kl * divergence, rel=1e-9, abs=1e-9)
    assert got.total.requires_grad
    assert not any(term.requires_grad for term in got[1:])
    assert all(term.shape == () for term in got)


@given(sizes, seeds, events, weights, weights)
@settings(max_examples=30)
def test_squash_and_double_softmax_match_numpy(size, seed, event, bce, kl):
    """The published code computes -log sigmoid(-(NLL + kl KL + bce CE) / C), with CE of a softmax of probabilities."""
    case, channels = Case(size, seed, event), size[1]
    got = case(Objective(bce, kl, squash=True, double_softmax=True))
    log_p, odds, divergence, log_det = case.numpy()
    if event == "sample":
        log_p, divergence, count = log_p.sum((1, 2)), divergence.mean((1, 2)), size[2] * size[3]
    else:
        count = 1
    probabilities = np.stack([special.expit(odds), special.expit(-odds)])
    label = case.mask.numpy().astype(int)
    twice = special.log_softmax(probabilities, axis=0)
    entropy = -np.take_along_axis(twice, label[None], axis=0).mean()
    inner = -(log_p + log_det) / count / channels + kl * divergence / channels + bce * entropy / channels
    assert got.total.item() == pytest.approx(-special.log_expit(-inner).mean(), rel=1e-9)
    assert got.bce.item() == pytest.approx(entropy if bce else 0.0, rel=1e-9)


def test_presets_have_the_published_weights():
    """The paper has lambda_1 = 1 (BCE) and lambda_2 = 0.2 (KL); its published code exchanges them."""
    paper, reference = PRESETS["paper"], PRESETS["reference"]
    assert (paper.bce, paper.kl, paper.squash, paper.double_softmax) == (1.0, 0.2, False, False)
    assert (reference.bce, reference.kl, reference.squash, reference.double_softmax) == (0.2, 1.0, True, True)
    assert Objective() == paper
    case = Case()
    terms = case(paper)
    assert terms.total.item() == pytest.approx((terms.nll + terms.bce + 0.2 * terms.kl).item(), rel=1e-12)


# Weights


@pytest.mark.parametrize("event", EVENTS)
def test_zero_weights_remove_their_terms(event):
    case = Case(event=event)
    both, no_bce, no_kl, neither = (case(Objective(b, k)) for b, k in ((1, 1), (0, 1), (1, 0), (0, 0)))
    assert neither.total.item() == neither.nll.item() == both.nll.item()
    assert no_bce.total.item() == pytest.approx((both.nll + both.kl).item(), rel=1e-12)
    assert no_kl.total.item() == pytest.approx((both.nll + both.bce).item(), rel=1e-12)
    assert no_bce.bce.item() == 0
    assert both.bce.item() > 0
    # without BCE, the base needs no anomalous distribution
    assert case(Objective(bce=0), StandardNormal()).nll.isfinite()
    # without a mask, there is no BCE
    unmasked = case(Objective(5.0, 0.0), mask=False)
    assert unmasked.bce.item() == 0
    assert unmasked.total.item() == unmasked.nll.item()
    assert case(Objective(), StandardNormal(), mask=False).bce.item() == 0


def test_kl_is_zero_without_a_divergence():
    case = Case()
    for statistics in (Statistics(case.beta), Statistics(case.beta, case.alpha)):
        terms = Objective()(case.z, case.log_det, "location", SemanticGaussian(), statistics, case.mask)
        assert terms.kl.item() == 0
        assert terms.total.item() == pytest.approx((terms.nll + terms.bce).item(), rel=1e-12)
    assert Objective()(case.z, case.log_det, "location", StandardNormal()).kl.item() == 0


def test_empty_mask_marks_all_locations_normal():
    case = Case()
    case.mask = torch.zeros_like(case.mask)
    masked, unmasked = case(Objective()), case(Objective(), mask=False)
    assert masked.nll.item() == unmasked.nll.item()
    odds = case.numpy()[1]
    assert masked.bce.item() == pytest.approx(-special.log_expit(odds / 5).mean(), rel=1e-9)
    assert unmasked.bce.item() == 0


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_mask_may_have_any_dtype(dtype):
    case = Case()
    expected = case(Objective())
    case.mask = case.mask.to(dtype)
    assert [x.item() for x in case(Objective())] == [x.item() for x in expected]


def test_temperature_divides_the_log_odds():
    case = Case((2, 64, 3, 4))
    hot, cold, default = (case(Objective(temperature=t)).bce.item() for t in (1e6, 64.0, None))
    assert hot == pytest.approx(np.log(2), abs=1e-3)
    assert cold == pytest.approx(default, rel=1e-12)


def test_large_log_odds_give_finite_loss_and_gradients():
    """At C = 2048 the logits exceed the range of exp in float32."""
    z = torch.full((1, 2048, 2, 2), 4.0).requires_grad_()  # beyond the anomalous mean, but labeled normal
    statistics = Statistics(torch.full((1, 1, 2, 2), 1e-3), torch.full((1, 1, 2, 2), 50.0))
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    terms = Objective(temperature=1.0)(z, torch.zeros(1, 2, 2), "location", SemanticGaussian(), statistics, mask)
    assert terms.bce.item() == pytest.approx(50 / 1e-3 * 2048 * 3.5, rel=1e-5)
    (gradient,) = torch.autograd.grad(terms.total, z)
    assert gradient.isfinite().all()


# Ignored locations


@given(sizes, seeds, events, st.booleans(), st.sampled_from([torch.bool, torch.float32]))
@settings(max_examples=40)
def test_ignored_locations_match_numpy(size, seed, event, squash, dtype):
    """Means are over the remaining locations; the likelihood of a sample is over all of them."""
    case, channels = Case(size, seed, event), size[1]
    ignore = torch.from_numpy(np.random.default_rng(seed + 1).random((size[0], *size[2:])) < 0.5)
    ignore[:, 0, 0] = False
    left = ~ignore.numpy()
    log_p, odds, divergence, log_det = case.numpy()
    entropy = cross_entropy(odds / channels, case.mask.numpy())[left].mean()
    if event == "location":
        nll, inner_kl = -(log_p + log_det)[left] / channels, divergence[left] / channels
    else:
        nll = -(log_p.sum((1, 2)) + log_det) / channels / size[2] / size[3]
        inner_kl = (divergence * left).sum((1, 2)) / left.sum((1, 2)) / channels
    total = nll.mean() + 0.7 * divergence[left].mean() / channels + 0.5 * entropy
    if squash:
        total = -special.log_expit(-(nll + 0.7 * inner_kl + 0.5 * entropy / channels)).mean()
    got = case(Objective(0.5, 0.7, squash=squash), ignore=ignore.to(dtype))
    assert got.nll.item() == pytest.approx(nll.mean(), rel=1e-10, abs=1e-10)
    assert got.kl.item() == pytest.approx(divergence[left].mean() / channels, rel=1e-10)
    assert got.bce.item() == pytest.approx(entropy, rel=1e-10)
    assert got.total.item() == pytest.approx(total, rel=1e-9, abs=1e-10)


def test_loss_is_zero_if_all_locations_are_ignored():
    case = Case()
    terms = case(PRESETS["paper"], ignore=torch.ones_like(case.mask))
    assert [x.item() for x in terms] == [0.0] * 4
    assert all((g == 0).all() for g in torch.autograd.grad(terms.total, case.leaves()))


def test_ignore_of_another_shape_is_rejected():
    """A mask (1, H, W) would broadcast and give a wrong mean."""
    case = Case()
    for wrong in (case.mask[:1], case.mask[:, None], case.mask[0]):
        with pytest.raises(ShapeError, match=r"^ignore must be \(B, H, W\) = \(2, 3, 4\), but got"):
            case(Objective(), ignore=wrong)


# Properties


@given(sizes, seeds, events, st.sampled_from([PRESETS["paper"], Objective(0, 0, squash=True), Objective(0, 1.0)]))
@settings(max_examples=30)
def test_loss_of_a_batch_is_the_mean_over_its_samples(size, seed, event, objective):
    case = Case(size, seed, event)
    together = case(objective)
    alone = [case(objective, part=slice(i, i + 1)) for i in range(size[0])]
    for name in together._fields:
        mean = np.mean([getattr(terms, name).item() for terms in alone])
        assert getattr(together, name).item() == pytest.approx(mean, rel=1e-10, abs=1e-12), name


@pytest.mark.parametrize("objective", [*PRESETS.values(), Objective(temperature=2.0)])
@pytest.mark.parametrize("event", EVENTS)
def test_gradients_match_finite_differences(objective, event):
    case = Case((2, 3, 2, 2), event=event)
    gradients = torch.autograd.grad(case(objective).total, case.leaves())
    assert all((g != 0).all() for g in gradients)

    def total(z, log_det, a, b):
        statistics = Statistics(b, a, kl=inverse_gamma_kl(a, b, *PRIOR)[:, 0])
        return objective(z, log_det, event, SemanticGaussian(), statistics, case.mask).total

    assert torch.autograd.gradcheck(total, case.leaves())


@given(seeds, st.sampled_from([1, 8, 512]))
@settings(max_examples=20)
def test_minimum_at_weight_one_is_the_conjugate_posterior(seed, channels):
    """IG(a0 + C / 2, b0 + ||z||^2 / 2) is not the minimum for weight 0.2, nor for the printed likelihood."""
    case = Case((2, channels, 3, 3), seed)
    a0, b0 = PRIOR
    best_b = b0 + case.z.detach().square().sum(1, keepdim=True) / 2
    case.alpha = torch.full_like(best_b, a0 + channels / 2).requires_grad_()
    case.beta = best_b.requires_grad_()

    def slopes(objective, base):
        terms = case(objective, base, mask=False)
        gradients = torch.autograd.grad(terms.total, (case.alpha, case.beta))
        return max((g * x).abs().max().item() for g, x in zip(gradients, (case.alpha, case.beta), strict=True))

    objective = Objective(bce=0.0, kl=1.0)
    assert slopes(objective, SemanticGaussian()) < 1e-11
    assert slopes(PRESETS["paper"], SemanticGaussian()) > 1e-4
    assert channels == 1 or slopes(objective, SemanticGaussian(form="paper")) > 1e-3
    with torch.no_grad():
        lowest = case(objective, mask=False).total.item()
        for factors in ((0.9, 1.0), (1.1, 1.0), (1.0, 0.9), (1.0, 1.1), (1.1, 1.1), (0.9, 0.9)):
            moved = Case((2, channels, 3, 3), seed)
            moved.alpha, moved.beta = case.alpha * factors[0], case.beta * factors[1]
            assert moved(objective, mask=False).total.item() > lowest


def test_minimizing_the_loss_separates_normal_and_anomalous_latents():
    """Forty steps on z give every location log-odds of the right sign."""
    case = Case((4, 6, 3, 3))
    before = case.numpy()[1]
    z = case.z.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.05)
    fixed = Statistics(*(x.detach() for x in (case.beta, case.alpha)))
    for _ in range(40):
        optimizer.zero_grad()
        PRESETS["paper"](z, case.log_det.detach(), "location", SemanticGaussian(), fixed, case.mask).total.backward()
        optimizer.step()
    after = SemanticGaussian().log_odds(z, fixed).detach().numpy()
    anomalous = case.mask.numpy()
    assert (after[~anomalous] > 0).all()
    assert (after[anomalous] < 0).all()
    assert (before[anomalous] > 0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bce": -1.0}, r"^bce must be at least 0, but got -1.0"),
        ({"kl": -0.1}, r"^kl must be at least 0, but got -0.1"),
        ({"temperature": 0.0}, r"^temperature must be positive"),
        ({"temperature": -2.0}, r"^temperature must be positive"),
    ],
)
def test_objective_rejects_invalid_options(options, message):
    with pytest.raises(ConfigError, match=message):
        Objective(**options)


def test_mask_of_another_shape_is_rejected():
    case = Case()
    case.mask = case.mask[:, :2]
    with pytest.raises(ShapeError, match=r"^anomaly_mask must be"):
        case(Objective())


@given(st.integers(0, 2**31 - 1), st.integers(1, 16))
def test_variance_of_the_base_equals_a_scaling_of_the_flow(seed, channels) -> None:
    """log N(z; 0, s^2) + log_det = log N(z / s; 0, 1) + log_det of z / s, as in docs/mathematics.md (Table S5)."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, channels, 3, 4, dtype=torch.float64, generator=generator)
    log_det = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
    variance = torch.exp(3 * torch.randn(2, 1, 3, 4, dtype=torch.float64, generator=generator))
    scaled = z / variance.sqrt()
    scaled_log_det = log_det - channels / 2 * variance[:, 0].log()
    left = log_likelihood(SemanticGaussian().log_prob(z, Statistics(variance)), log_det, "location")
    right = log_likelihood(StandardNormal().log_prob(scaled), scaled_log_det, "location")
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)
