"""BGAD's boundary loss against a loop in float64, its gradients, and extreme inputs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semflow.bases import SemanticGaussian, StandardNormal
from semflow.errors import ConfigError
from semflow.nn import Statistics
from semflow.objectives import Objective, boundary_loss


def slow_loss(
    log_prob: list[float], anomalous: list[bool], ignore: list[bool], quantile: float, margin: float, scale: float
) -> tuple[float, list[float]]:
    """The published procedure, one location at a time, and its gradient with the boundary as a constant."""
    x = [value / scale for value in log_prob]
    normal = [k for k in range(len(x)) if not anomalous[k] and not ignore[k]]
    gradient = [0.0] * len(x)
    if not normal:
        return 0.0, gradient
    b = sorted(x[k] for k in normal)[min(int(len(normal) * quantile), len(normal) - 1)]
    below = [k for k in normal if x[k] < b]
    above = [k for k in range(len(x)) if anomalous[k] and not ignore[k] and x[k] > b - margin]
    total = sum(b - x[k] for k in below) / max(len(below), 1) + sum(x[k] - b + margin for k in above) / max(
        len(above), 1
    )
    for k in below:
        gradient[k] = -1 / scale / len(below)
    for k in above:
        gradient[k] = 1 / scale / len(above)
    return total, gradient


@given(
    st.lists(
        st.tuples(st.floats(-100, 50).map(lambda x: round(x, 1)), st.booleans(), st.integers(0, 9)),
        min_size=1, max_size=60,
    ),
    st.sampled_from([0.05, 0.0, 0.3, 0.99]), st.sampled_from([0.1, 0.0, 1.0]), st.sampled_from([10.0, 1.0]),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_loss_and_gradient_equal_a_loop(
    rows: list[tuple[float, bool, int]], quantile: float, margin: float, scale: float
) -> None:
    """Rounded values make ties."""
    values, anomalous, ignored = (list(column) for column in zip(*rows, strict=True))
    ignore = [k == 0 for k in ignored]
    log_prob = torch.tensor(values, dtype=torch.float64).reshape(1, 1, -1).requires_grad_()
    mask, left = (torch.tensor(column).reshape(1, 1, -1) for column in (anomalous, ignore))
    loss = boundary_loss(log_prob, mask, left, quantile, margin, scale)
    loss.backward()
    expected, gradient = slow_loss(values, anomalous, ignore, quantile, margin, scale)
    assert loss.item() == pytest.approx(expected, abs=1e-10)
    assert log_prob.grad is not None
    torch.testing.assert_close(log_prob.grad.flatten(), torch.tensor(gradient, dtype=torch.float64), rtol=0, atol=1e-10)
    single = boundary_loss(log_prob.detach().float(), mask, left, quantile, margin, scale)
    assert single.item() == pytest.approx(expected, rel=1e-5, abs=1e-5 * (1 + abs(expected)))


def test_nothing_to_compare() -> None:
    x = torch.linspace(-20, 0, 8).requires_grad_()
    for mask, ignore in (
        (torch.ones(8), None), (torch.zeros(8), torch.ones(8)), (torch.arange(8) < 4, torch.arange(8) >= 4),
    ):  # fmt: skip
        loss = boundary_loss(x, mask, ignore)
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, x)
        assert torch.equal(gradient, torch.zeros(8))


def test_infinite_densities() -> None:
    """One normal location of density 0 costs infinitely much; an anomalous one costs nothing."""
    x = torch.linspace(-20.0, 0.0, 40)
    mask = torch.arange(40) % 4 == 3
    finite = boundary_loss(x, mask)
    assert math.isfinite(finite)
    lowest = x.clone()
    lowest[3] = -math.inf
    assert math.isfinite(boundary_loss(lowest, mask))
    lowest[0] = -math.inf
    assert boundary_loss(lowest, mask) == math.inf


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("squash", [False, True])
def test_objective_adds_it_to_the_likelihood_of_normal_locations(squash: bool, ignored: bool) -> None:
    """A standard normal has no anomalous distribution, so it must not learn from anomalous locations."""
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(2, 6, 4, 5, generator=generator, dtype=torch.float64)
    log_det = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 4, 5, generator=generator) < 0.3
    ignore = torch.rand(2, 4, 5, generator=generator) < 0.2 if ignored else None
    terms = Objective(bce=0.0, kl=0.0, squash=squash, boundary=0.7)(
        z, log_det, "location", StandardNormal(), None, mask, ignore
    )
    log_p = (-3 * math.log(2 * math.pi) - z.square().sum(1) / 2 + log_det) / 6
    left = mask if ignore is None else mask | ignore
    nll = torch.nn.functional.softplus(-log_p[~left]) if squash else -log_p[~left]
    expected = nll.mean() + 0.7 * boundary_loss(log_p, mask, ignore)
    assert terms.total.item() == pytest.approx(expected.item(), abs=1e-10)
    assert boundary_loss(log_p, mask, ignore) > 0


def test_objective_with_an_anomalous_distribution_keeps_its_likelihood() -> None:
    z, log_det = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(1)), torch.zeros(2, 4, 4)
    mask, statistics = torch.arange(16).reshape(1, 4, 4).expand(2, -1, -1) % 5 == 0, Statistics(torch.ones(2, 1, 4, 4))
    given = (z, log_det, "location", SemanticGaussian(), statistics, mask)
    plain, bounded = (Objective(bce=0.0, kl=0.0, boundary=weight)(*given) for weight in (0.0, 1.0))
    log_p = SemanticGaussian().log_prob(z, statistics) / 6
    torch.testing.assert_close(bounded.total, plain.total + boundary_loss(log_p, mask))
    assert torch.equal(bounded.nll, plain.nll)
    without = Objective(bce=0.0, kl=0.0, boundary=1.0)(*given[:-1])
    assert torch.equal(without.total, without.nll)


def test_where_it_cannot_be_computed() -> None:
    with pytest.raises(ConfigError, match="boundary must be at least 0, but got -1"):
        Objective(boundary=-1.0)
    z, mask = torch.zeros(2, 6, 4, 4), torch.zeros(2, 4, 4)
    with pytest.raises(ConfigError, match="boundary must be 0 for a flow of event 'sample'"):
        Objective(boundary=1.0)(z, torch.zeros(2), "sample", StandardNormal(), None, mask)


def test_several_processes_are_refused() -> None:
    from types import SimpleNamespace
    from typing import Any, cast

    from semflow.detectors import Detector
    from semflow.training.sharing import shared

    detector = SimpleNamespace(features=torch.nn.Identity(), modules=list, objective=Objective(boundary=1.0))
    with pytest.raises(ConfigError, match="boundary must be 0 for several processes, but got"):  # noqa: SIM117
        with shared(cast(Detector, detector), cast(Any, SimpleNamespace(count=2))):
            pass


def test_cflow_ad_trains_with_it() -> None:
    from dataclasses import replace

    from semflow import fit
    from semflow.data import Sample
    from semflow.recipes import Backbone, Couplings, cflow_ad
    from semflow.synthesis import CutPaste

    good = [
        Sample(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(k)), 0, None, str(k)) for k in range(4)
    ]
    weights = []
    for boundary in (0.0, 1.0):
        detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, couplings=Couplings(1, 16))
        detector.objective = replace(detector.objective, boundary=boundary)
        with pytest.raises(ConfigError, match="accumulate must be 1"):
            fit(detector, good, replace(detector.provenance.training, accumulate=2, locations=None), progress=False)
        fit(detector, good, synthesis=CutPaste(), epochs=2, batch_size=4, progress=False)
        weights.append(torch.cat([p.detach().flatten() for p in detector.flows.parameters()]))
    assert not torch.equal(*weights)
