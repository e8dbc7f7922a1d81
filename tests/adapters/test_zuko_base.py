"""ZukoBase equals zuko's own base at variance 1, and scipy's densities at predicted variances."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from helpers.library_cases import draw, surroundings
from semflow.adapters import ZukoBase, as_flow, with_statistics
from semflow.bases import SemanticGaussian, variance_distribution
from semflow.errors import ConfigError, ShapeError
from semflow.nn import (
    FeatureStatisticsNetwork,
    FixedVariance,
    InverseGammaVariance,
    LearnedVariance,
    PredictedMean,
    StatisticsNetwork,
)

zuko = pytest.importorskip("zuko", reason='needs zuko: pip install "semflow[zuko]"')

C, D = 4, 5


def flow(kind: str = "MAF", context: int = D, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    with surroundings(seed, dtype):
        return getattr(zuko.flows, kind)(C, context, transforms=2, hidden_features=(8,))


def predicted(outputs: int = 2, kernel: int = 1, dtype: torch.dtype = torch.float64) -> InverseGammaVariance:
    """Return a head whose statistics depend on the context."""
    with surroundings(1, dtype):
        network = FeatureStatisticsNetwork(D, outputs, filters=8, kernel=kernel)
        head = InverseGammaVariance(network, mode=0.5)
        nn.init.normal_(network.output.weight, std=0.5)
    return head


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 2, 3)], ids=str)
@pytest.mark.parametrize("kind", ["MAF", "NSF"])
def test_zuko_base_with_unit_variance_equals_zuko(kind: str, shape: tuple[int, ...]) -> None:
    theirs = flow(kind)
    ours = zuko.flows.Flow(theirs.transform, ZukoBase(FixedVariance(1.0), C).double())
    c, x = draw(*shape, D, seed=1, dtype=torch.float64), draw(*shape, C, seed=2, dtype=torch.float64)
    made = ours(c)
    torch.testing.assert_close(made.log_prob(x), theirs(c).log_prob(x), rtol=1e-12, atol=1e-12)
    assert (made.batch_shape, made.event_shape) == (torch.Size(shape), torch.Size((C,)))
    x, log_prob = made.rsample_and_log_prob((2,))
    assert x.shape == (2, *shape, C)
    torch.testing.assert_close(log_prob, theirs(c).log_prob(x), rtol=1e-8, atol=1e-8)


def test_zuko_base_without_a_context() -> None:
    theirs = flow("NSF", context=0)
    learned = LearnedVariance(1, start=1.0).double()
    ours = zuko.flows.Flow(theirs.transform, ZukoBase(learned, C))
    x = draw(7, C, seed=2, dtype=torch.float64)
    torch.testing.assert_close(ours().log_prob(x), theirs().log_prob(x), rtol=1e-12, atol=1e-12)
    assert ours().sample((3,)).shape == (3, C)
    ours().log_prob(x).sum().backward()
    assert learned.log_variance.grad is not None
    assert learned.log_variance.grad.abs() > 0


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), form=st.sampled_from(["marginal", "mode"]), mean=st.floats(-2, 2))
def test_zuko_base_density_equals_scipy(seed: int, form: Any, mean: float) -> None:
    """A Student-t or a normal with the head's statistics at each location."""
    base = ZukoBase(predicted(), C, mean, form)
    c, z = draw(2, 2, 3, D, seed=seed, dtype=torch.float64), draw(2, 2, 3, C, seed=seed + 1, dtype=torch.float64)
    with torch.no_grad():
        actual = base(c).log_prob(z)
        statistics = base.statistics(c)
    assert statistics.alpha is not None
    for b, h, w in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3)).tolist():
        alpha, beta = statistics.alpha[b, 0, h, w].item(), statistics.beta[b, 0, h, w].item()
        loc = [mean] * C
        truth = (
            stats.multivariate_t(loc, beta / alpha, df=2 * alpha)
            if form == "marginal"
            else stats.multivariate_normal(loc, beta / (alpha + 1))
        )
        assert actual[b, h, w].item() == pytest.approx(truth.logpdf(z[b, h, w].numpy()), rel=1e-9)


def test_zuko_base_equals_with_statistics() -> None:
    """The same model in zuko and in this library; the head predicts from the context c in both."""
    theirs, head = flow(), predicted(kernel=3)
    x, c = draw(2, C, 4, 3, seed=1, dtype=torch.float64), draw(2, D, 4, 3, seed=2, dtype=torch.float64)
    z, log_det = as_flow(theirs)(x, c)
    (statistics,) = head(c, [c])
    right = SemanticGaussian(form="marginal").log_prob(z, statistics) + log_det
    ours = zuko.flows.Flow(theirs.transform, ZukoBase(head, C))
    actual = ours(c.movedim(1, -1)).log_prob(x.movedim(1, -1))
    torch.testing.assert_close(actual, right, rtol=1e-10, atol=1e-10)
    given = zuko.distributions.NormalizingFlow(theirs.transform(c.movedim(1, -1)), ours.base(statistics))
    torch.testing.assert_close(given.log_prob(x.movedim(1, -1)), right, rtol=1e-10, atol=1e-10)
    alone = ours(c[0].movedim(0, -1)).log_prob(x[0].movedim(0, -1))  # one map without a batch
    torch.testing.assert_close(alone, right[0], rtol=1e-10, atol=1e-10)
    control = with_statistics(theirs, FixedVariance(1.0)).log_prob(x, context=c)
    plain = zuko.flows.Flow(theirs.transform, ZukoBase(FixedVariance(1.0), C))(c.movedim(1, -1))
    torch.testing.assert_close(control, plain.log_prob(x.movedim(1, -1)), rtol=1e-10, atol=1e-10)


def test_zuko_base_mean_includes_predicted_shifts() -> None:
    with surroundings(2, torch.float64):
        network = FeatureStatisticsNetwork(D, 2, kernel=1)
        head = PredictedMean(network, variance=0.3)
        nn.init.normal_(network.output.weight)
    c = draw(6, D, seed=1, dtype=torch.float64)
    base = ZukoBase(head, C, mean=0.25)
    shift = base.statistics(c).normal_shift
    assert shift is not None
    right = (0.25 + shift[:, 0, 0]).expand(6, C)
    torch.testing.assert_close(base(c).mean, right)
    torch.testing.assert_close(base(c).variance, torch.full((6, C), 0.3, dtype=torch.float64))


def test_zuko_base_samples_have_the_predicted_variance() -> None:
    base = ZukoBase(predicted(), C)
    c = draw(3, D, seed=1, dtype=torch.float64)
    with surroundings(0), torch.no_grad():
        drawn = base(c).sample((20000,))
        variance = variance_distribution(base.statistics(c)).mean[:, 0, 0]  # E[z^2] = E[s]
    torch.testing.assert_close(drawn.var(0).mean(-1), variance, rtol=0.05, atol=0.0)


def test_zuko_base_trains_loads_its_state_dict_and_copies() -> None:
    """The loss of zuko's tutorials plus the head's divergence gives every parameter a gradient."""
    ours = zuko.flows.Flow(flow().transform, ZukoBase(predicted(), C))
    other = zuko.flows.Flow(flow(seed=3).transform, ZukoBase(predicted(), C))
    c, x = draw(64, D, seed=1, dtype=torch.float64), draw(64, C, seed=2, dtype=torch.float64)
    optimizer = torch.optim.Adam(ours.parameters(), 1e-2)
    losses = []
    for _ in range(10):
        kl = ours.base.statistics(c).kl
        loss = -ours(c).log_prob(x).mean() + 0.01 * kl.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in ours.base.parameters())
    other.load_state_dict(ours.state_dict())
    right = ours(c).log_prob(x)
    assert torch.equal(other(c).log_prob(x), right)
    assert torch.equal(copy.deepcopy(ours)(c).log_prob(x), right)
    assert "mean=0.0, form=marginal" in repr(ours)


REJECTED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "image": (
        lambda: ZukoBase(InverseGammaVariance(StatisticsNetwork(stride=4)), C),
        ConfigError,
        "head must predict from a context, .* FeatureStatisticsNetwork",
    ),
    "form": (lambda: ZukoBase(FixedVariance(), C, form="exact"), ConfigError, "form must be marginal or mode"),  # type: ignore[arg-type]
    "channels": (lambda: ZukoBase(FixedVariance(), 0), ConfigError, "channels must be at least 1"),
    "no context": (
        lambda: ZukoBase(predicted(), C)(),
        ShapeError,
        "c must be a context for InverseGammaVariance",
    ),
    "dimensions": (
        lambda: ZukoBase(predicted(), C)(torch.zeros(1, 2, 2, 2, D)),
        ShapeError,
        r"c must be .*, but got \(1, 2, 2, 2, 5\)",
    ),
}


@pytest.mark.parametrize("name", REJECTED)
def test_zuko_base_rejects_invalid_arguments(name: str) -> None:
    make, kind, message = REJECTED[name]
    with pytest.raises(kind, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_zuko_base_density_is_float32_under_autocast() -> None:
    base = ZukoBase(predicted(dtype=torch.float32), C)
    c, z = draw(6, D, seed=1), draw(6, C, seed=2)
    right = base(c).log_prob(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual: Tensor = base(c).log_prob(z)
    assert actual.dtype == torch.float32
    assert (actual - right).abs().max() < 0.5  # the network itself ran in bfloat16
