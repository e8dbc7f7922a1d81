"""with_statistics trains flows of every library on real features: held-out photographs become likelier."""

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Transform, TransformedDistribution

from helpers.library_cases import CASES, SIZE, D, need, surroundings
from helpers.real_features import context_of, real_features
from semflow.adapters import as_flow, with_statistics
from semflow.nn import FeatureStatisticsNetwork, InverseGammaVariance

C = 8
STEPS = 30


def linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))


def convolution(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, outputs, 3, padding=1))


def freia(dims: tuple[int, ...], subnet: Callable[[int, int], nn.Module], condition: int = 0) -> Callable[[int], Any]:
    """Return a factory of the blocks of CFLOW-AD or FastFlow."""

    def make(channels: int) -> Any:
        framework, modules = import_module("FrEIA.framework"), import_module("FrEIA.modules")
        inn = framework.SequenceINN(channels, *dims)
        given = {"cond": 0, "cond_shape": (condition, *dims)} if condition else {}
        for _ in range(2):
            inn.append(modules.AllInOneBlock, subnet_constructor=subnet, permute_soft=False, **given)
        return inn

    return make


def graph(channels: int) -> Any:
    framework, modules = import_module("FrEIA.framework"), import_module("FrEIA.modules")
    start, code = framework.InputNode(channels), framework.ConditionNode(D)
    block = framework.Node(start, modules.GLOWCouplingBlock, {"subnet_constructor": linear}, conditions=code)
    turned = framework.Node(block, modules.PermuteRandom, {"seed": 0})
    last = framework.Node(turned, modules.GLOWCouplingBlock, {"subnet_constructor": linear}, conditions=code)
    return framework.GraphINN([start, code, block, turned, last, framework.OutputNode(last)])


class Whitening(nn.Module):
    """Flow of vectors: z = L x + shift, L triangular."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.below, self.log_scale = nn.Parameter(torch.zeros(channels, channels)), nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def matrix(self) -> Tensor:
        return self.below.tril(-1) + self.log_scale.exp().diag()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x @ self.matrix().T + self.shift, self.log_scale.sum().expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.matrix(), (z - self.shift).T, upper=False).T


# library, factory, declared event, whether it has a context
Learner = tuple[str, Callable[[int], Any], Any, bool]
LEARNERS: dict[str, Learner] = {
    name: (case.library, case.make, case.declared, case.context)
    for name, case in CASES.items()
    if name not in ("torch maps", "torch elementwise", "zuko lazy transform")  # too few parameters, or a duplicate
}
LEARNERS |= {
    "FrEIA vectors": ("FrEIA", freia((), linear), None, False),
    "FrEIA vectors, condition": ("FrEIA", freia((), linear, D), None, True),
    "FrEIA maps": ("FrEIA", freia(SIZE, convolution), None, False),
    "FrEIA maps, condition": ("FrEIA", freia(SIZE, convolution, D), None, True),
    "FrEIA graph, condition": ("FrEIA", graph, None, True),
    "a callable": ("torch", Whitening, "location", False),
}


def parameters_of(flow: Any, seen: frozenset[int] = frozenset()) -> list[nn.Parameter]:
    """Return the parameters in the user's own object."""
    if isinstance(flow, nn.Module):
        return [p for p in flow.parameters() if p.requires_grad]
    if isinstance(flow, nn.Parameter):
        return [flow]
    if id(flow) in seen or not isinstance(flow, list | Transform | TransformedDistribution):
        return []
    held = flow if isinstance(flow, list) else list(vars(flow).values())
    return [p for one in held for p in parameters_of(one, seen | {id(flow)})]


@pytest.mark.parametrize("name", LEARNERS)
def test_training_raises_the_likelihood_of_held_out_photographs(name: str) -> None:
    library, make, event, conditional = LEARNERS[name]
    need(library)
    train, test = real_features(C)
    with surroundings(0):
        theirs = make(C)
        model = with_statistics(
            as_flow(theirs, event), InverseGammaVariance(FeatureStatisticsNetwork(C, filters=8), mode=1.0)
        )
        context = context_of(len(train), D) if conditional else None

        def held_out() -> float:
            """Return the log-likelihood of held-out photographs in nats per dimension."""
            with torch.no_grad():
                given = None if context is None else context[: len(test)]
                return model.log_prob(test, context=given).sum().item() / test.numel()

        before = held_out()
        start = [p.detach().clone() for p in parameters_of(theirs)]
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(STEPS):
            optimizer.zero_grad()
            model.loss(train, context=context).total.backward()
            optimizer.step()
        after = held_out()
    assert start
    assert all(not torch.equal(p, s) for p, s in zip(parameters_of(theirs), start, strict=True))
    assert math.isfinite(before)
    assert after > before + 0.02  # nats per dimension
