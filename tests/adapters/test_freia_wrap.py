"""as_flow with networks of FrEIA, whatever blocks they have."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from helpers.freia_cases import (
    SUBNETS,
    SequenceINN,
    assert_same,
    deviation,
    draw,
    framework,
    inputs,
    linear,
    modules,
    perturb,
    sequence,
    surroundings,
)
from semflow.adapters import as_flow, from_freia
from semflow.errors import ConfigError, ShapeError
from semflow.functional import to_locations
from semflow.testing import check_flow


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("condition", [0, 4])
@pytest.mark.parametrize("layout", ["rows", "map 3x3"])
def test_wrapped_sequence_equals_freia_and_the_conversion(layout: str, condition: int, dtype: torch.dtype) -> None:
    with surroundings(0, dtype):
        inn = sequence(layout, 6, [{}, {"permute_soft": True}], condition)
        flow, converted = as_flow(inn), from_freia(inn)
        x, context = inputs(layout, 6, condition)
        assert flow.event == converted.event
        assert_same(inn, flow, layout, x, context)
        with torch.no_grad():
            (z, log_det), (their_z, their_log_det) = flow(x, context), converted(x, context)
        assert deviation(z, their_z) < 1e-5
        assert deviation(log_det, their_log_det) < 1e-5


def stack(dims: tuple[int, ...], *blocks: Callable[[Any], None], force: bool = False) -> Any:
    made = SequenceINN(*dims, force_tuple_output=force)
    for append in blocks:
        append(made)
    perturb(made, 0, 1.0)
    return made


def add(kind: type, **options: object) -> Callable[[Any], None]:
    return lambda inn: inn.append(kind, **options)


def conditional(kind: type, subnet: object, shape: tuple[int, ...], index: int = 0) -> Callable[[Any], None]:
    return add(kind, cond=index, cond_shape=shape, subnet_constructor=subnet)


conv = SUBNETS["map 3x3"]
WRAPPED = {
    "glow": ((4,), [add(modules.GLOWCouplingBlock, subnet_constructor=linear), add(modules.PermuteRandom, seed=0)], 0),
    "glow maps": ((4, 2, 3), [add(modules.GLOWCouplingBlock, subnet_constructor=conv)], 0),
    "glow conditional": ((4,), [conditional(modules.GLOWCouplingBlock, linear, (4,))], 4),
    "glow second condition": ((4, 2, 3), [conditional(modules.GLOWCouplingBlock, conv, (4, 2, 3), index=1)], 4),
    "gin": ((4,), [add(modules.GINCouplingBlock, subnet_constructor=linear)], 0),
    "permutation": ((4,), [add(modules.PermuteRandom, seed=0)], 0),
    "permutation maps": ((4, 2, 3), [add(modules.PermuteRandom, seed=0)], 0),
    "gin maps": ((4, 2, 3), [add(modules.GINCouplingBlock, subnet_constructor=conv)], 0),
}


@pytest.mark.parametrize("force", [False, True], ids=["tensor", "tuple"])
@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_sequence_satisfies_the_flow_laws(name: str, force: bool) -> None:
    dims, blocks, condition = WRAPPED[name]
    with surroundings():
        flow = as_flow(stack(dims, *blocks, force=force))
        assert flow.event == ("location" if len(dims) == 1 else "sample")
        context = draw(condition, 2, 3, seed=3) if condition else None
        check_flow(flow, draw(2, 4, 2, 3, seed=1), context, compile_backend=None)


def test_wrapped_sequence_shares_its_parameters() -> None:
    with surroundings():
        inn = sequence("rows", 4, [{}, {}])
        flow = as_flow(inn)
        assert {id(p) for p in flow.parameters()} == {id(p) for p in inn.parameters()}
        z, log_det = flow(draw(2, 4, 2, 3, seed=0))
        (z.square().sum() - log_det.sum()).backward()
        assert all(p.grad is not None for p in inn.parameters() if p.requires_grad)


def test_wrapped_sequence_rejects_wrong_contexts_and_channels() -> None:
    with surroundings():
        flow = as_flow(sequence("rows", 4, [{}], condition=4))
        with pytest.raises(ShapeError, match=r"context must be given: .* 4 context channels"):
            flow(torch.zeros(1, 4, 2, 3))
        with pytest.raises(ShapeError, match="context must be"):
            flow(torch.zeros(1, 4, 2, 3), torch.zeros(4, 3, 2))
        with pytest.raises(ShapeError, match=r"x must be \(B, 4, H, W\)"):
            flow.inverse(torch.zeros(1, 5, 2, 3), torch.zeros(4, 2, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(nn.Linear, 2, 2), "flow must be of FrEIA, .*, but got torch.nn.modules.linear.Linear"),
        (partial(SequenceINN, 4), "at least one block"),
        (
            partial(stack, (4, 9), add(modules.PermuteRandom)),
            r"must map \(C,\) or \(C, H, W\), but got dimensions \(4, 9\)",
        ),
        (
            partial(stack, (4, 2, 2), add(modules.HaarDownsampling)),
            r"keep the shape .* \(4, 2, 2\) to \(16, 1, 1\)",
        ),
        (
            partial(stack, (4,), *(conditional(modules.GLOWCouplingBlock, linear, (4,), index=i) for i in (0, 2))),
            r"cond must be the same for all blocks .* got \[0, 2\]",
        ),
    ],
)
def test_as_flow_rejects_unsupported_sequences(make: Callable[[], nn.Module], message: str) -> None:
    with surroundings(), pytest.raises(ConfigError, match=message) as caught:
        as_flow(make())
    assert "\n" not in str(caught.value)


def graph(dims: tuple[int, ...], conditions: tuple[int, ...], seed: int = 0) -> Any:
    """Return two GLOW blocks with a permutation after each; the second has the last condition only."""
    subnet = linear if len(dims) == 1 else conv
    given = [framework.ConditionNode(width, *dims[1:]) for width in conditions]
    nodes = [framework.InputNode(*dims)]
    for number, block_conditions in enumerate((given, given[-1:])):
        block = modules.GLOWCouplingBlock
        options = {"subnet_constructor": subnet}
        nodes.append(framework.Node(nodes[-1], block, options, conditions=block_conditions, name=f"block {number}"))
        nodes.append(framework.Node(nodes[-1], modules.PermuteRandom, {"seed": number}, name=f"permutation {number}"))
    made = framework.GraphINN([*nodes, framework.OutputNode(nodes[-1]), *given])
    perturb(made, seed, 1.0)
    return made


GRAPHS = [((4,), ()), ((4,), (3,)), ((4,), (3, 2)), ((4, 2, 3), ()), ((4, 2, 3), (3, 2))]


@pytest.mark.parametrize(("dims", "conditions"), GRAPHS, ids=str)
def test_wrapped_graph_equals_freia(dims: tuple[int, ...], conditions: tuple[int, ...]) -> None:
    """The channels of the context are the conditions, in the order of the condition nodes."""
    with surroundings(0, torch.float64):
        inn = graph(dims, conditions)
        flow = as_flow(inn)
        x = draw(2, 4, 2, 3, seed=1)
        maps = [draw(2, width, 2, 3, seed=2 + i) for i, width in enumerate(conditions)]
        context = torch.cat(maps, dim=1) if maps else None
        by_location = len(dims) == 1
        with torch.no_grad():
            given = [to_locations(m) if by_location else m for m in maps]
            right_z, right_log_det = inn(to_locations(x) if by_location else x, given)
            z, log_det = flow(x, context)
        assert flow.event == ("location" if by_location else "sample")
        assert deviation(to_locations(z) if by_location else z, right_z) < 1e-12
        assert deviation(log_det.flatten(), right_log_det) < 1e-12
        assert {id(p) for p in flow.parameters()} == {id(p) for p in inn.parameters()}
    with surroundings(0):
        context = None if context is None else context.float()
        check_flow(as_flow(graph(dims, conditions)), x.float(), context, compile_backend=None)


def test_as_flow_rejects_graphs_with_two_outputs_or_another_shape() -> None:
    with surroundings(0):
        start = framework.InputNode(4)
        split = framework.Node(start, modules.Split, {})
        two = framework.GraphINN([start, split, framework.OutputNode(split.out0), framework.OutputNode(split.out1)])
        with pytest.raises(ConfigError, match=r"one input and one output, but got a GraphINN with 1 and 2"):
            as_flow(two)
        start = framework.InputNode(4, 2, 2)
        haar = framework.Node(start, modules.HaarDownsampling, {})
        with pytest.raises(ConfigError, match=r"keep the shape .* \(4, 2, 2\) to \(16, 1, 1\)"):
            as_flow(framework.GraphINN([start, haar, framework.OutputNode(haar)]))


def test_context_of_a_graph_holds_all_its_conditions() -> None:
    with surroundings(0):
        flow = as_flow(graph((4,), (3, 2)))
        with pytest.raises(ShapeError, match=r"context must be given: .* 5 context channels"):
            flow(torch.zeros(1, 4, 2, 3))
        with pytest.raises(ShapeError, match=r"context must be \(D, H, W\) = \(5, 2, 3\)"):
            flow(torch.zeros(1, 4, 2, 3), torch.zeros(3, 2, 3))


def test_declared_event_must_be_that_of_the_network() -> None:
    with surroundings(0):
        assert as_flow(graph((4,), ()), "location").event == "location"
        with pytest.raises(ConfigError, match=r"event must be 'location' for a GraphINN of \(C,\), but got 'sample'"):
            as_flow(graph((4,), ()), "sample")
        with pytest.raises(ConfigError, match=r"event must be 'sample' for a SequenceINN of \(C, H, W\), but got"):
            as_flow(sequence("map 3x3", 4, [{}]), "location")
