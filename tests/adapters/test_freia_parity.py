"""from_freia computes the same as FrEIA 0.2: to twelve digits in float64, to five in float32."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.freia_cases import (
    SUBNETS,
    AllInOneBlock,
    D,
    assert_same,
    block,
    deviation,
    draw,
    inputs,
    linear,
    sequence,
    surroundings,
)
from semflow.adapters import from_freia
from semflow.flows import AffineCoupling, GlobalAffine, HardPermutation, SoftPermutation
from semflow.functional import to_locations
from semflow.nn import SinusoidalPosition2d
from semflow.testing import check_flow

DTYPES = [torch.float64, torch.float32]
MIXINGS: dict[str, dict[str, Any]] = {
    "hard": {"permute_soft": False},
    "soft": {"permute_soft": True},
    "reflected": {"permute_soft": True, "learned_householder_permutation": 3},
    "reflected hard": {"learned_householder_permutation": 2},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reverse", [False, True], ids=["plain", "reverse"])
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("condition", [0, D], ids=["free", "conditional"])
@pytest.mark.parametrize("layout", SUBNETS)
def test_conversion_of_one_block(layout: str, condition: int, mixing: str, reverse: bool, dtype: torch.dtype) -> None:
    for channels, kind in ((2, "EXP"), (5, "SOFTPLUS"), (8, "SIGMOID")):
        with surroundings(channels, dtype):
            theirs = block(
                layout,
                channels,
                condition,
                seed=channels,
                affine_clamping=1.3,
                global_affine_type=kind,
                reverse_permutation=reverse,
                **MIXINGS[mixing],
            )
            assert_same(theirs, from_freia(theirs), layout, *inputs(layout, channels, condition))


@settings(max_examples=60)
@given(
    layout=st.sampled_from(sorted(SUBNETS)),
    channels=st.integers(2, 13),
    condition=st.sampled_from([0, 2, 6]),
    clamp=st.floats(0.1, 4.0),
    init=st.floats(0.05, 6.0),
    kind=st.sampled_from(["SOFTPLUS", "SIGMOID", "EXP"]),
    mixing=st.sampled_from(sorted(MIXINGS)),
    reverse=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 999),
)
def test_conversion_of_a_block_with_random_options(
    layout: str,
    channels: int,
    condition: int,
    clamp: float,
    init: float,
    kind: str,
    mixing: str,
    reverse: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    options = {"affine_clamping": clamp, "global_affine_init": init, "global_affine_type": kind}
    with surroundings(seed, dtype):
        theirs = block(layout, channels, condition, seed, reverse_permutation=reverse, **options, **MIXINGS[mixing])
        x, context = inputs(layout, channels, condition)
        smallest = theirs.global_scale_activation(theirs.global_scale).min().item() * math.exp(-clamp)
        assert_same(theirs, from_freia(theirs), layout, x, context, amplification=1 / smallest)


STACK: list[dict[str, Any]] = [
    {"permute_soft": True},
    {"global_affine_type": "EXP"},
    {"reverse_permutation": True, "affine_clamping": 1.1},
    {"cond": None, "global_affine_type": "SIGMOID"},
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("condition", [0, D], ids=["free", "conditional"])
@pytest.mark.parametrize("layout", SUBNETS)
def test_conversion_of_a_sequence(layout: str, condition: int, dtype: torch.dtype) -> None:
    with surroundings(0, dtype):
        theirs = sequence(layout, 7, STACK, condition)
        ours = from_freia(theirs)
        assert [type(flow) for flow in ours] == [
            *(AffineCoupling, GlobalAffine, SoftPermutation),
            *(AffineCoupling, GlobalAffine, HardPermutation),
            *(HardPermutation, AffineCoupling, GlobalAffine, HardPermutation),
            *(AffineCoupling, GlobalAffine, HardPermutation),
        ]
        assert_same(theirs, ours, layout, *inputs(layout, 7, condition))


def test_conversion_of_alternating_kernels_as_in_fastflow() -> None:
    with surroundings(0, torch.float64):
        blocks = [{"subnet_constructor": SUBNETS[name]} for name in ("map 3x3", "map 1x1", "map 3x3")]
        theirs = sequence("map 3x3", 6, blocks)
        ours = from_freia(theirs)
        assert [flow.event for flow in ours if isinstance(flow, AffineCoupling)] == ["sample", "location", "sample"]
        assert_same(theirs, ours, "map 3x3", *inputs("map 3x3", 6, 0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conversion_of_the_flow_of_sanflow(dtype: torch.dtype) -> None:
    """Eight blocks with hard permutations on the locations of a map, conditioned on a sinusoidal code."""
    with surroundings(1, dtype):
        theirs = sequence("rows", 24, [{"affine_clamping": 1.9} for _ in range(8)], condition=32)
        code = SinusoidalPosition2d(32)(4, 5)
        x = draw(2, 24, 4, 5, seed=0)
        assert_same(theirs, from_freia(theirs), "rows", x, code)
        for context in (code.dense(), code.dense()[None], code.dense().expand(2, -1, -1, -1)):
            assert_same(theirs, from_freia(theirs), "rows", x, context)


def test_conditions_of_a_block_are_concatenated() -> None:
    with surroundings(0, torch.float64):
        theirs = block("map 3x3", 5, dims_c=[(2, 3, 4), (3, 3, 4)])
        ours = from_freia(theirs)
        x, one, two = draw(2, 5, 3, 4, seed=1), draw(2, 2, 3, 4, seed=2), draw(2, 3, 3, 4, seed=3)
        (z,), log_det = theirs([x], [one, two])
        our_z, our_log_det = ours(x, torch.cat((one, two), dim=1))
        assert deviation(our_z, z) < 1e-12
        assert deviation(our_log_det, log_det) < 1e-12


@pytest.mark.parametrize("kind", ["SOFTPLUS", "SIGMOID", "EXP"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_converted_global_scales_are_exact_over_their_range(kind: str, dtype: torch.dtype) -> None:
    """The range includes the point where torch's softplus becomes the identity, a scale of 4."""
    with surroundings(0, dtype):
        theirs = block("vector", 15, global_affine_type=kind)
        extremes = torch.tensor([-15.0, -9, -4, -1, 0, 1, 1.38, 1.4, 2, 5, 39.9, 40.1, 45, 60, 80])
        with torch.no_grad():
            theirs.global_scale.copy_(extremes if kind != "EXP" else extremes.clamp(max=20))
        ours = from_freia(theirs)
        scale = theirs.global_scale_activation(theirs.global_scale)[0]
        our_scale = next(flow for flow in ours if isinstance(flow, GlobalAffine)).scale()
        assert ((our_scale - scale) / scale).abs().max() < {torch.float64: 1e-14, torch.float32: 3e-6}[dtype]
        log_det = theirs([torch.ones(1, 15)])[1]
        assert (
            deviation(ours(torch.ones(1, 15, 1, 1))[1].view(1), log_det)
            < {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
        )


@pytest.mark.parametrize("layout", SUBNETS)
def test_converted_block_has_the_gradients_of_freia(layout: str) -> None:
    """The two parts of the first layer's weights get FrEIA's gradient."""
    with surroundings(0, torch.float64):
        theirs = block(layout, 5, D)
        ours = from_freia(theirs)
        x, context = inputs("rows", 5, D) if layout == "vector" else inputs(layout, 5, D)
        dense = context.dense().expand(len(x), -1, -1, -1) if isinstance(context, tuple) else context
        rows = layout in ("vector", "rows")
        theirs_x = to_locations(x) if rows else x.clone()
        theirs_x.requires_grad_()
        x.requires_grad_()
        (z,), log_det = theirs([theirs_x], [to_locations(dense) if rows else dense])
        (z.square().sum() - 2 * log_det.sum()).backward()
        our_z, our_log_det = ours(x, context)
        (our_z.square().sum() - 2 * our_log_det.sum()).backward()
        assert deviation(to_locations(x.grad) if rows else x.grad, theirs_x.grad) < 1e-12
        coupling, affine = ours[0], ours[1]
        first, second = theirs.subnet[0], theirs.subnet[2]
        pairs = [(affine.raw_scale, theirs.global_scale), (affine.shift, theirs.global_offset)]
        if coupling.event == "location":
            joint = torch.cat((coupling.subnet.weight_x.grad, coupling.subnet.weight_context.grad), dim=1)
            assert deviation(joint, first.weight.grad.flatten(1)) < 1e-12
            pairs += [(coupling.subnet.bias, first.bias), (coupling.subnet.output.weight, second.weight)]
        else:
            pairs += [(coupling.subnet.first.weight, first.weight), (coupling.subnet.second.weight, second.weight)]
        for our_parameter, parameter in pairs:
            assert deviation(our_parameter.grad.flatten(), parameter.grad.flatten()) < 1e-12


@pytest.mark.parametrize("layout", ["rows", "map 1x1", "map 3x3"])
def test_converted_flow_satisfies_the_flow_laws(layout: str) -> None:
    with surroundings():
        theirs = sequence(layout, 4, [{"permute_soft": True}, {"reverse_permutation": True}], condition=4)
        x, context = inputs(layout, 4, 4)
        check_flow(from_freia(theirs), x, context, perturbation=0.0, compile_backend=None)


def test_from_freia_does_not_change_or_share_the_module() -> None:
    with surroundings():
        theirs = sequence("map 3x3", 6, [{"permute_soft": True}, {"permute_soft": False}], condition=D).eval()
        before = copy.deepcopy(theirs.state_dict())
        drawn = torch.get_rng_state()
        ours = from_freia(theirs)
        assert torch.equal(torch.get_rng_state(), drawn)
        assert not ours.training
        assert not any(module.training for module in ours.modules())
        assert all(parameter.requires_grad for parameter in ours.parameters())
        with torch.no_grad():
            for tensor in (*ours.parameters(), *ours.buffers()):
                tensor.zero_()
        assert all(torch.equal(tensor, before[name]) for name, tensor in theirs.state_dict().items())
        assert from_freia(theirs.train()).training


def test_converted_flow_loads_its_state_dict_and_copies() -> None:
    with surroundings(0, torch.float64):
        theirs = sequence("rows", 6, STACK, condition=D)
        ours, other = from_freia(theirs), from_freia(sequence("rows", 6, STACK, condition=D))
        x, context = inputs("rows", 6, D)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        other.load_state_dict(ours.state_dict())
        for flow in (other, copy.deepcopy(ours)):
            assert_same(theirs, flow, "rows", x, context)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_converted_flow_keeps_the_dtype(dtype: torch.dtype) -> None:
    with surroundings():
        ours = from_freia(block("rows", 6, D).to(dtype))
    assert {tensor.dtype for tensor in (*ours.parameters(), *ours.buffers())} == {dtype, torch.int64}


def test_converted_layers_without_a_bias_get_zeros() -> None:
    with surroundings(0, torch.float64):
        for layout in ("rows", "map 3x3"):
            theirs = block(layout, 6, D, subnet_constructor=lambda i, o, make=SUBNETS[layout]: make(i, o, bias=False))
            assert_same(theirs, from_freia(theirs), layout, *inputs(layout, 6, D))


def test_from_freia_detects_the_clamp_of_an_untrained_block() -> None:
    """An untrained block is nearly linear, so its results hardly depend on the form of the clamp."""

    def quiet(i: int, o: int) -> nn.Sequential:
        made = linear(i, o)
        nn.init.zeros_(made[2].weight)
        nn.init.zeros_(made[2].bias)
        return made

    with surroundings():
        ours = from_freia(AllInOneBlock([(6,)], subnet_constructor=quiet))
    assert ours[0].clamp_form == "tanh"


def development(theirs: nn.Module) -> nn.Module:
    """Return a block like that of FrEIA's development version: another clamp, and an index for the permutation."""

    class Development(type(theirs)):  # type: ignore[misc]
        def _affine(self, x: Tensor, a: Tensor, rev: bool = False) -> tuple[Tensor, Tensor]:
            s, t = (0.1 * a).split(x.shape[1], dim=1)
            s = self.clamp * torch.tanh(s / self.clamp)
            log_det = s.flatten(1).sum(1)
            return ((x - t) / s.exp(), -log_det) if rev else (x * s.exp() + t, log_det)

    made = copy.deepcopy(theirs)
    made.__class__ = Development
    matrix = theirs.w_perm.flatten(1)
    if ((matrix == 0) | (matrix == 1)).all():
        made.w_perm = nn.Parameter(matrix.argmax(1), requires_grad=False)
        made.w_perm_inv = nn.Parameter(torch.argsort(made.w_perm), requires_grad=False)
        made.permute_function = lambda x, index: x[:, index]
    return made


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reverse", [False, True], ids=["plain", "reverse"])
@pytest.mark.parametrize("mixing", ["hard", "soft"])
@pytest.mark.parametrize("layout", SUBNETS)
def test_conversion_of_the_development_version(layout: str, mixing: str, reverse: bool, dtype: torch.dtype) -> None:
    """It cannot be installed beside 0.2; a stand-in has its clamp c tanh(s / c) and its index."""
    with surroundings(0, dtype):
        released = block(layout, 5, D, affine_clamping=1.9, reverse_permutation=reverse, **MIXINGS[mixing])
        theirs = development(released)
        ours = from_freia(theirs)
        x, context = inputs(layout, 5, D)
        assert_same(theirs, ours, layout, x, context)
        assert [flow.clamp_form for flow in ours if isinstance(flow, AffineCoupling)] == ["tanh_unit"]
        other_z, _ = from_freia(released)(x, context)
        assert deviation(ours(x, context)[0], other_z) > 1e-3
