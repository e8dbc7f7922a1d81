"""as_flow with nflows, normflows, zuko, torch.distributions and Pyro, compared with those libraries."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Transform, TransformedDistribution

from helpers.library_cases import CASES, SIZE, Case, D, draw, moved, need, surroundings
from semflow.adapters import as_flow, with_statistics
from semflow.bases import StandardNormal
from semflow.flows import Flow
from semflow.functional import to_locations
from semflow.nn import FeatureStatisticsNetwork, InverseGammaVariance
from semflow.objectives import log_likelihood
from semflow.testing import check_flow

C = 4
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def case_of(name: str) -> Case:
    need(CASES[name].library)
    return CASES[name]


def learned(value: object, seen: frozenset[int] = frozenset()) -> set[int]:
    """The parameters in a flow of another library, by identity, wherever torch or Python keeps them."""
    if isinstance(value, nn.Parameter):
        return {id(value)} if value.requires_grad else set()
    if isinstance(value, nn.Module):
        return {id(p) for p in value.parameters() if p.requires_grad}
    if id(value) in seen or not isinstance(value, list | Transform | TransformedDistribution):
        return set()
    inner = value if isinstance(value, list) else list(vars(value).values())
    return set().union(*(learned(one, seen | {id(value)}) for one in inner))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_adapted_likelihood_equals_the_library(name: str, dtype: torch.dtype) -> None:
    case = case_of(name)
    with surroundings(0, dtype):
        theirs = case.make(C)
        flow = moved(as_flow(theirs, case.declared).to(dtype).eval())
        x = 0.5 * draw(3, C, *SIZE, seed=1, dtype=dtype)
        context = draw(3, D, *SIZE, seed=2, dtype=dtype) if case.context else None
        with torch.no_grad():
            right = case.log_prob(theirs, case.rows(x), None if context is None else to_locations(context))
            z, log_det = flow(x, context)
            actual = log_likelihood(StandardNormal().log_prob(z), log_det, flow.event)
            back = flow.inverse(z, context)
    assert flow.event == case.event
    assert (actual.dtype, right.numel()) == (dtype, actual.numel())
    off = (actual.flatten() - right.flatten()).abs().max() / right.abs().max().clamp(min=1)
    assert off < TOLERANCE[dtype]
    assert (back - x).abs().max() < 100 * TOLERANCE[dtype]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.checked])
def test_adapted_flow_satisfies_the_flow_laws(name: str) -> None:
    case = case_of(name)

    def make(seed: int) -> Flow:
        with surroundings(seed):
            return as_flow(case.make(C), case.declared).eval()

    context = draw(D, *SIZE, seed=2) if case.context else None
    check_flow(
        make(0),
        0.5 * draw(2, C, *SIZE, seed=1),
        context,
        compile_backend="aot_eager" if case.compiles else None,
        factory=lambda: make(1),
        perturbation=0.3,
    )


@pytest.mark.parametrize("name", CASES)
def test_adapted_flow_shares_its_parameters(name: str) -> None:
    case = case_of(name)
    with surroundings(0):
        theirs = case.make(C)
        flow = as_flow(theirs, case.declared)
        context = draw(D, *SIZE, seed=2) if case.context else None
        z, log_det = flow(0.5 * draw(2, C, *SIZE, seed=1), context)
        (z.square().sum() - 2 * log_det.sum()).backward()
    with_gradients = {id(p) for p in flow.parameters() if p.requires_grad}
    assert with_gradients == learned(theirs) != set()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.declare])
def test_check_flow_names_the_wrong_event_of_every_library(name: str) -> None:
    case = case_of(name)
    wrong, right = ("sample", "location") if case.event == "location" else ("location", "sample")
    with surroundings(0):
        flow = as_flow(case.make(C), wrong).eval()
        context = draw(D, *SIZE, seed=2) if case.context else None
        with pytest.raises(AssertionError, match=f"if event is '{wrong}', but .* its event is '{right}'"):
            check_flow(flow, 0.5 * draw(2, C, *SIZE, seed=1), context, compile_backend=None)


def textures(count: int, height: int, width: int, seed: int) -> Tensor:
    """Return images (count, 3, H, W) in [0, 1]: gratings of one frequency and random phase with a little noise."""
    phase = 6.28 * torch.rand((count, 1, 1, 1), generator=torch.Generator().manual_seed(seed))
    row, column = torch.arange(height)[:, None] / 3, torch.arange(width) / 5
    wave = torch.sin(row + column + phase + torch.tensor([0.0, 0.4, 0.8])[:, None, None])
    return (0.5 + 0.3 * wave + 0.05 * draw(count, 3, height, width, seed=seed)).clamp(0, 1)


def features_of(images: Tensor, channels: int) -> Tensor:
    """Return features of a small random backbone, each channel standardized."""
    with surroundings(3):
        net = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Tanh(), nn.Conv2d(8, channels, 2, stride=2), nn.Tanh())
        with torch.no_grad():
            features: Tensor = net(images)
    return (features - features.mean((0, 2, 3), keepdim=True)) / features.std((0, 2, 3), keepdim=True)


@pytest.mark.parametrize(
    "name",
    ["nflows composite", "normflows NormalizingFlow", "zuko MAF", "torch compose", "pyro couplings", "nflows maps"],
)
def test_with_statistics_raises_the_likelihood_of_other_images(name: str) -> None:
    case = case_of(name)
    c = 6
    features = features_of(textures(96, 16, 24, seed=8), c)
    assert features.shape[2:] == SIZE
    train, test = features[:64], features[64:]
    with surroundings(0):
        head = InverseGammaVariance(FeatureStatisticsNetwork(c, filters=8), mode=1.0)
        model = with_statistics(as_flow(case.make(c), case.declared), head)

        def held_out() -> float:
            with torch.no_grad():
                return model.log_prob(test).sum().item() / test.numel()

        before = held_out()
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(30):
            optimizer.zero_grad()
            model.loss(train).total.backward()
            optimizer.step()
        after = held_out()
    still = [name for name, p in model.named_parameters() if p.requires_grad and torch.equal(p, start[name])]
    assert not still
    assert math.isfinite(after)
    assert after > before + 0.1  # nats per dimension
