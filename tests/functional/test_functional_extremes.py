"""Accuracy of values and gradients over twelve decades of alpha and beta, for up to 2048 channels and all dtypes.

Errors are measured against the largest term of the sum (see functional_truths): 1e-5 in float32, 1e-10 in float64.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.devices import DEVICE
from helpers.functional_truths import FORMS, TOLERANCE, assert_close, log_odds, log_prob
from semflow.functional import inverse_gamma_kl, normal_log_odds, normal_log_prob

CHANNELS = (1, 2, 512, 2048)
DTYPES = (torch.float32, torch.float64)
CUDA = pytest.param(DEVICE, marks=pytest.mark.cuda, id="cuda")

decades = st.floats(-6, 6).map(lambda x: 10**x)
dtypes, channel_counts, forms, seeds = (st.sampled_from(x) for x in (DTYPES, CHANNELS, FORMS, range(1000)))
# Exact in float32, so that a mean is the same number in both dtypes.
exact_means = st.sampled_from([0.0, 1.0, -0.5, 1.5])


def inputs(z, a, b, dtype, device="cpu"):
    """Make leaves z (1, C), alpha and beta (1, 1) of one location, rounded to the dtype."""
    return [torch.as_tensor(x, dtype=dtype).reshape(1, -1).to(device).requires_grad_() for x in (z, a, b)]


def numbers(*tensors):
    return [x.detach().double().cpu().flatten().numpy() for x in tensors]


def check(got, leaves, truth, what):
    dtype = leaves[0].dtype
    assert got.dtype == dtype
    gradients = torch.autograd.grad(got.sum(), leaves)
    assert_close(got, truth["value"], TOLERANCE[dtype], f"value of {what}")
    for name, gradient in zip(("z", "alpha", "beta"), gradients, strict=True):
        assert_close(gradient, truth[name], TOLERANCE[dtype], f"gradient to {name} of {what}")


def check_log_prob(z, a, b, mean, form, dtype, device="cpu"):
    leaves = inputs(z, a, b, dtype, device)
    z, a, b = numbers(*leaves)
    truth = log_prob(form, z - mean, a.item(), b.item(), np.maximum(np.abs(z), abs(mean)))
    check(normal_log_prob(*leaves, mean, form), leaves, truth, f"{form}, C={z.size}, {a}, {b}, {dtype}")


def check_log_odds(z, a, b, normal, anomaly, form, dtype, device="cpu"):
    leaves = inputs(z, a, b, dtype, device)
    z, a, b = numbers(*leaves)
    as_arrays = [np.broadcast_to(np.asarray(m, dtype=np.float64), z.shape) for m in (normal, anomaly)]
    as_means = [m if isinstance(m, float) else torch.as_tensor(m)[None].to(dtype).to(device) for m in (normal, anomaly)]
    truth = log_odds(form, z, *as_arrays, a.item(), b.item())
    check(normal_log_odds(*leaves, *as_means, form), leaves, truth, f"{form} odds, C={z.size}, {a}, {b}, {dtype}")


@given(decades, decades, channel_counts, st.floats(-3, 2), exact_means, forms, dtypes, seeds)
@settings(max_examples=120)
def test_log_prob_is_accurate_over_twelve_decades(a, b, channels, log_size, mean, form, dtype, seed):
    z = np.random.default_rng(seed).normal(size=channels) * 10**log_size
    check_log_prob(z, a, b, mean, form, dtype)


@given(
    decades, decades, channel_counts, st.floats(-6, 4), exact_means, exact_means, forms, dtypes, seeds, st.booleans()
)
@settings(max_examples=120)
def test_log_odds_are_accurate_over_twelve_decades(a, b, channels, log_size, normal, anomaly, form, dtype, seed, near):
    """Includes latents near the anomalous mean, where 2 b + q_a is much smaller than 2 b + q_n."""
    z = np.random.default_rng(seed).normal(size=channels) * 10**log_size + (anomaly if near else 0)
    check_log_odds(z, a, b, normal, anomaly, form, dtype)


@given(decades, decades, channel_counts, forms, dtypes, seeds)
@settings(max_examples=60)
def test_log_odds_are_accurate_with_a_mean_per_channel(a, b, channels, form, dtype, seed):
    rng = np.random.default_rng(seed)
    z, normal, anomaly = rng.normal(size=(3, channels)).astype(np.float32).astype(np.float64)
    check_log_odds(z, a, b, normal, anomaly, form, dtype)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_log_prob_and_log_odds_are_accurate_at_extremes(form, dtype, device):
    for channels in (1, 2048):
        z = np.linspace(-1.5, 2, channels)
        for a, b in ((1e-6, 1e-6), (1e-6, 1e6), (59.5, 6.05), (1e6, 1e-6), (1e6, 1e6)):
            check_log_prob(z, a, b, 1.0, form, dtype, device)
            check_log_odds(z, a, b, 0.0, 1.0, form, dtype, device)


def test_marginal_log_odds_are_finite_at_the_anomalous_mean_in_float32():
    """With 1 + gap / (2 b + q), which is 1 - (almost 1) there, a third of these locations would be NaN."""
    z = 0.7 + 1e-5 * torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    a, b = torch.full((64, 1), 59.5), torch.full((64, 1), 1e-6)
    z.requires_grad_()
    odds = normal_log_odds(z, a, b, 0.0, 0.7, "marginal")
    odds.sum().backward()
    truth = normal_log_odds(z.detach().double(), a.double(), b.double(), 0.0, 0.7, "marginal")
    assert torch.allclose(odds.double(), truth, rtol=1e-5)
    assert z.grad.isfinite().all()


def test_log_odds_have_a_gradient_at_equal_distance():
    """The two branches of the marginal log-odds meet there."""
    z = torch.full((1, 4), 0.5, dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    for form, expected in (("exact", -1.0), ("mode", -2.0), ("marginal", -(1 + 2) * 2 / (2 + 4 * 0.25))):
        (gradient,) = torch.autograd.grad(normal_log_odds(z, one, one, form=form), z)
        assert gradient.tolist() == [pytest.approx([expected] * 4, rel=1e-12)]


@pytest.mark.parametrize("form", FORMS)
def test_derivatives_match_finite_differences(form):
    rng = np.random.default_rng(0)
    z, mean, other = (torch.from_numpy(rng.normal(size=(2, 3))).requires_grad_() for _ in range(3))
    a, b = (torch.from_numpy(np.exp(rng.uniform(-1, 4, size=(2, 1)))).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda *x: normal_log_prob(*x, form), (z, a, b, mean))
    assert torch.autograd.gradgradcheck(lambda *x: normal_log_prob(*x, form), (z, a, b, mean))
    assert torch.autograd.gradcheck(lambda *x: normal_log_odds(*x, form), (z, a, b, mean, other))
    assert torch.autograd.gradgradcheck(lambda *x: normal_log_odds(*x, form), (z, a, b, mean, other))


# Half precision, autocast, compilation


def example(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 512, 3, 3, generator=generator).to(dtype)
    a, b = (torch.empty(2, 1, 3, 3).log_normal_(0, 3, generator=generator).to(dtype) for _ in range(2))
    normal, anomaly = (torch.randn(2, 1, 3, 3, generator=generator).to(dtype) for _ in range(2))
    return z, a, b, normal, anomaly


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(half, form):
    z, a, b, normal, anomaly = example(half)
    for function, means in (
        (normal_log_prob, ()),
        (normal_log_prob, (anomaly,)),
        (normal_log_odds, ()),
        (normal_log_odds, (normal, anomaly)),
        (normal_log_odds, (0.3, anomaly)),
    ):
        got = function(z, a, b, *means, form=form)
        wide = function(
            *(x.float() for x in (z, a, b)), *(m if isinstance(m, float) else m.float() for m in means), form=form
        )
        assert got.dtype == torch.float32
        assert torch.equal(got, wide)


@pytest.mark.parametrize("form", FORMS)
def test_autocast_does_not_change_results(form):
    z, a, b, normal, anomaly = example()
    z, a, b = (x.requires_grad_() for x in (z.bfloat16(), a, b))

    def run():
        p, odds = normal_log_prob(z, a, b, normal, form), normal_log_odds(z, a, b, normal, anomaly, form)
        return p, odds, *torch.autograd.grad(p.sum() + odds.sum(), (z, a, b))

    outside = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run()
    assert inside[0].dtype == inside[1].dtype == torch.float32
    for x, y in zip(outside, inside, strict=True):
        assert torch.equal(x, y)


def loss(z, a, b):
    """Use all functions: likelihood, marginal likelihood, divergence and log-odds."""
    likelihood = normal_log_prob(z, a, b) + normal_log_prob(z, a, b, 1.0, "marginal")
    odds = normal_log_odds(z, a, b) + normal_log_odds(z, a, b, form="marginal")
    return (inverse_gamma_kl(a, b, 59.5, 6.05)[:, 0] - likelihood - torch.nn.functional.logsigmoid(odds / 512)).mean()


def test_functions_compile_to_one_graph():
    leaves = [x.requires_grad_() for x in example()[:3]]
    eager = loss(*leaves)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves)
    assert compiled.item() == pytest.approx(eager.item(), rel=1e-6)
    for x, y in zip(torch.autograd.grad(compiled, leaves), torch.autograd.grad(eager, leaves), strict=True):
        assert torch.allclose(x, y, rtol=1e-5, atol=1e-6 * y.abs().max().item())


def test_vmap_gives_gradients_per_location():
    z, a, b = (x.double() for x in example()[:3])
    rows = [x.movedim(1, -1).flatten(0, -2) for x in (z, a, b)]
    each = torch.func.vmap(torch.func.grad(lambda *x: normal_log_prob(*x, form="marginal", dim=0), argnums=(0, 1, 2)))(
        *rows
    )
    leaves = [x.clone().requires_grad_() for x in rows]
    together = torch.autograd.grad(normal_log_prob(*leaves, form="marginal").sum(), leaves)
    for x, y in zip(each, together, strict=True):
        assert torch.allclose(x, y, rtol=1e-12)
