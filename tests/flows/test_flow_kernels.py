"""Fused kernels equal plain operators in values and derivatives, and are used only where they may be."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from helpers.flow_cases import D, blocks, features, generator
from semflow.flows import AffineCoupling, FlowSequence, GlobalAffine, HardPermutation, coupling_stack, fused_kernels
from semflow.flows.fused_block import find_block
from semflow.flows.kernels import ELEMENTWISE, LOCATION, CouplingForm, apply
from semflow.flows.kernels.autograd import Kernel, location_operator
from semflow.nn import ConvSubnet, LocationSubnet, PerceptronSubnet, SinusoidalPosition2d
from semflow.testing.case import perturb

PASSES = "semflow.flows.kernels.passes"
TABLES = {"for each image": (5, 3), "for all images": (1, 3), "everywhere": (1, 1)}


@pytest.fixture(autouse=True)
def _seeded_parameters() -> Iterator[None]:
    """Seed torch's global generator, from which layers draw their parameters, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


Function = Callable[..., tuple[Tensor, Tensor]]


def functions(kernel: Kernel, swap: bool, clamp_form: str, channels: int) -> tuple[Function, Function]:
    """Return the kernel and its composition as functions of the tensors."""
    active, passive = channels // 2, channels - channels // 2
    form = CouplingForm((active, passive) if swap else (passive, active), swap, 0.7, 1.3, clamp_form)
    index = torch.randperm(channels, generator=generator(3))
    return partial(apply, kernel, form, index, torch.argsort(index)), partial(kernel.composition, form, index)


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    draw = generator()
    return [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes]


def location_case(
    table: str, swap: bool = False, clamp_form: str = "tanh", channels: int = 5, hidden: int = 7
) -> tuple[Function, Function, list[Tensor]]:
    """Return kernel, composition and tensors for five images of three locations."""
    active, passive = channels // 2, channels - channels // 2
    shapes = [(15, channels), (*TABLES[table], hidden), (hidden, passive), (2 * active, hidden), (2 * active,)]
    return *functions(LOCATION, swap, clamp_form, channels), drawn(*shapes, (channels,), (channels,))


def elementwise_case(
    swap: bool = False, clamp_form: str = "tanh", rows: bool = False
) -> tuple[Function, Function, list[Tensor]]:
    """Return the same with x and output as rows or as images."""
    images, *places = (15,) if rows else (5, 3)
    shapes = [(images, channels, *places) for channels in (5, 4)]
    return *functions(ELEMENTWISE, swap, clamp_form, 5), drawn(*shapes, (5,), (5,))


def assert_same_values_and_gradients(ours: Function, plain: Function, tensors: list[Tensor]) -> None:
    weights = features(1, 5, 3, 6).double()[0]
    results = []
    for function in (ours, plain):
        z, log_det = function(*tensors)
        channels_last = (t.movedim(1, -1).reshape(5, 3, -1) for t in (z, log_det.unsqueeze(1)))
        loss = (torch.cat(list(channels_last), 2) * weights).sum()
        results.append((z, log_det, *torch.autograd.grad(loss, tensors)))
    for actual, expected in zip(*results, strict=True):
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= 1e-12 * max(1, expected.abs().max())


@pytest.mark.parametrize("rows", [1, 6, 1024])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("clamp_form", ["tanh", "tanh_unit"])
def test_location_kernel_equals_its_composition(
    clamp_form: str, table: str, swap: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In groups of one image, of two images with one left, and of all images."""
    monkeypatch.setattr(sys.modules[PASSES], "ROWS", rows)
    assert_same_values_and_gradients(*location_case(table, swap, clamp_form))


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("elements", [1, 10, 30, 2**18])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("clamp_form", ["tanh", "tanh_unit"])
def test_elementwise_kernel_equals_its_composition(
    clamp_form: str, swap: bool, elements: int, rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In groups of one location, two locations, two images, and all images."""
    monkeypatch.setattr(sys.modules[PASSES], "ELEMENTS", elements)
    assert_same_values_and_gradients(*elementwise_case(swap, clamp_form, rows))


@pytest.mark.parametrize("table", TABLES)
def test_location_kernel_derivatives_match_finite_differences(table: str) -> None:
    """Forward, backward and second order."""
    ours, _, tensors = location_case(table, channels=3, hidden=3)
    assert torch.autograd.gradcheck(ours, tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(ours, tensors)


@pytest.mark.parametrize("rows", [False, True])
def test_elementwise_kernel_derivatives_match_finite_differences(rows: bool) -> None:
    ours, _, tensors = elementwise_case(rows=rows)
    assert torch.autograd.gradcheck(ours, tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(ours, tensors)


@pytest.mark.parametrize("used", [(0, 1, 3), (1, 5), (2, 4, 6), (0,)])
def test_kernel_differentiates_only_what_requires_gradients(used: tuple[int, ...]) -> None:
    ours, plain, tensors = location_case("for all images", swap=True)
    given = [t.detach().requires_grad_(i in used) for i, t in enumerate(tensors)]
    for only in (0, 1):  # z alone, log_det alone
        actual, expected = (
            torch.autograd.grad(function(*given)[only].sum(), [given[i] for i in used], allow_unused=True)
            for function in (ours, plain)
        )
        for gradient, right in zip(actual, expected, strict=True):
            assert torch.allclose(gradient, torch.zeros_like(gradient) if right is None else right, atol=1e-12)


@pytest.mark.parametrize(("raw", "bound"), [(-60.0, 0.5), (-1.0, 1.9), (0.0, 4.0), (0.3, 1.9), (60.0, 4.0)])
@pytest.mark.parametrize("clamp_form", ["tanh", "tanh_unit"])
def test_clamp_by_sigmoid_equals_soft_clamp(raw: float, bound: float, clamp_form: str) -> None:
    form = CouplingForm((1, 1), False, 0.7, bound, clamp_form)
    x = torch.tensor([raw], dtype=torch.float64, requires_grad=True)
    expected = bound * torch.tanh(0.7 * x / (1 if clamp_form == "tanh" else bound))
    actual = form.log_scale(x.detach())
    assert torch.allclose(actual, expected, atol=1e-14)
    (slope,) = torch.autograd.grad(expected, x)
    assert torch.allclose(form.slope(actual), slope, atol=1e-14)


STACKS: dict[str, Callable[[], FlowSequence]] = {
    "locations": lambda: coupling_stack(11, 8, context_channels=D, standardize=True, clamp_form="tanh_unit"),
    "locations, swapped": lambda: blocks(11),
    "convolutions": lambda: coupling_stack(11, 4, (ConvSubnet, partial(ConvSubnet, kernel=1)), clamp=2.0),
    "convolutions, conditional": lambda: coupling_stack(11, 2, (ConvSubnet,), context_channels=D),
}


@pytest.mark.parametrize("large", [1, 2**19])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_stack_with_kernels_equals_plain_operators(
    dtype: torch.dtype, tolerance: float, stack: str, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For maps above and below the size at which convolutions run with channels last."""
    monkeypatch.setattr(sys.modules["semflow.flows.fused_block"], "LARGE", large)
    flow = STACKS[stack]()
    flow.to(dtype)
    perturb(flow, 0.3, generator())
    x, context = features(3, 11, 4, 5).to(dtype).requires_grad_(), SinusoidalPosition2d(D)(4, 5)
    results = []
    for enabled in (True, False):
        with fused_kernels(enabled):
            z, log_det = flow(x, context)
            loss = z.square().mean() - log_det.mean()
            results.append((z, log_det, *torch.autograd.grad(loss, [x, *flow.parameters()])))
            with torch.inference_mode():
                for training, inference in zip((z, log_det), flow(x, context), strict=True):
                    assert (training - inference).abs().max() <= tolerance * max(1, training.detach().abs().max())
    for fused, plain in zip(*results, strict=True):
        assert (fused - plain).abs().max() <= tolerance * max(1, plain.abs().max())


def test_function_transforms_work_with_kernels() -> None:
    flow = blocks(4, count=1).double()
    x, context = features(2, 4, 2, 3).double(), SinusoidalPosition2d(D)(2, 3)

    def log_det(x: Tensor) -> Tensor:
        return flow(x, context)[1]

    backward, forward = torch.func.jacrev(log_det)(x), torch.func.jacfwd(log_det)(x)
    assert torch.allclose(backward, forward, atol=1e-12)
    several = torch.stack((x, 2 * x))
    assert torch.allclose(torch.vmap(log_det)(several), torch.stack([log_det(x) for x in several]), atol=1e-12)


def block_of(coupling: AffineCoupling) -> list[nn.Module]:
    return [coupling, GlobalAffine(4), HardPermutation(4)]


def test_kernels_are_used_only_where_they_apply() -> None:
    flow, x = block_of(AffineCoupling(4)), features(1, 4, 2, 2)
    assert find_block(flow, x)
    assert not find_block(flow, x.half())
    assert not find_block(block_of(AffineCoupling(4, clamp_form="atan")), x)
    assert not find_block(block_of(AffineCoupling(4, PerceptronSubnet)), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not find_block(flow, x)

    class Own(LocationSubnet):
        pass

    assert not find_block(block_of(AffineCoupling(4, Own)), x)
    flow[0].subnet.output = nn.Sequential(flow[0].subnet.output)
    assert not find_block(flow, x)


def test_fused_kernels_turns_kernels_off_and_restores_the_switch() -> None:
    flow, x = block_of(AffineCoupling(4)), features(1, 4, 2, 2)
    with fused_kernels(False):
        assert not find_block(flow, x)
        with fused_kernels(True):
            assert find_block(flow, x)
        assert not find_block(flow, x)
    with pytest.raises(RuntimeError), fused_kernels(False):
        raise RuntimeError
    assert find_block(flow, x)


@pytest.mark.parametrize(
    ("value", "output"),
    [("0", "False"), ("1", "True"), ("no", "SEMFLOW_FUSED_KERNELS must be 0 or 1, but got 'no'")],
)
def test_environment_variable_sets_the_switch(value: str, output: str) -> None:
    code = """
import torch
from semflow.flows import coupling_stack
from semflow.flows.fused_block import find_block
print(find_block(list(coupling_stack(4, blocks=1)), torch.zeros(1, 4, 2, 2)) is not None)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SEMFLOW_FUSED_KERNELS": value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert output in (done.stdout if value in "01" else done.stderr)


def test_only_complete_blocks_are_fused() -> None:
    x = features(1, 4, 2, 2)
    block = block_of(AffineCoupling(4))
    assert len(list(FlowSequence([HardPermutation(4), *block, *block, block[0]])._steps(x))) == 4
    assert len(list(FlowSequence([*block[1:], *block[:2]])._steps(x))) == 4
    for wrong in (GlobalAffine(1), HardPermutation(3)):
        parts = [wrong if type(part) is type(wrong) else part for part in block]
        assert len(list(FlowSequence(parts)._steps(x))) == 3


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("where", ["flows.0", "flows.0.subnet", "flows.0.subnet.output", "flows.1", "flows.2"])
def test_hooks_are_called(where: str, kind: str) -> None:
    flow, seen = FlowSequence(block_of(AffineCoupling(4))), []
    getattr(flow.get_submodule(where), f"register_{kind}_hook")(lambda *_: seen.append(where))
    z, log_det = flow(features(2, 4, 2, 3).requires_grad_())
    (z.sum() + log_det.sum()).backward()
    assert seen == [where]


@pytest.mark.parametrize("stack", STACKS)
def test_empty_batch_gives_zero_gradients(stack: str) -> None:
    flow = STACKS[stack]()
    x = torch.zeros(0, 11, 4, 5, requires_grad=True)
    z, log_det = flow(x, SinusoidalPosition2d(D)(4, 5))
    (z.sum() + log_det.sum()).backward()
    assert x.grad is not None
    assert all(p.grad is not None and not p.grad.any() for p in flow.parameters())


def test_backward_may_run_twice() -> None:
    """Backward changes neither saved tensors nor the incoming gradient."""
    flow, x = blocks(6, count=2), features(2, 6, 2, 3).requires_grad_()
    z, _ = flow(x, SinusoidalPosition2d(D)(2, 3))
    given = torch.ones_like(z)
    first, second = (torch.autograd.grad(z, [x, *flow.parameters()], given, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(given, torch.ones_like(z))


def compiled_case() -> tuple[Function, Function, list[Tensor], tuple[object, ...]]:
    ours, plain, tensors = location_case("for all images")
    _, form, index, inverse = ours.args
    numbers = ([*form.sizes], form.swap, [form.gain, form.clamp], form.clamp_form, True)
    return partial(location_operator, form, True, index, inverse), plain, tensors, (index, inverse, *numbers)


def test_operators_pass_opcheck_and_equal_the_composition() -> None:
    compiled, plain, tensors, options = compiled_case()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(torch.ops.semflow.block_3.default, (*tensors, *options), test_utils=checks)
    for actual, expected in zip(compiled(*tensors), plain(*tensors), strict=True):
        assert torch.allclose(actual, expected, atol=1e-12)
        gradients = (
            torch.autograd.grad(v.square().sum(), tensors, None, True, allow_unused=True) for v in (actual, expected)
        )
        for gradient, right in zip(*gradients, strict=True):
            assert torch.allclose(gradient, torch.zeros_like(gradient) if right is None else right, atol=1e-11)


@pytest.mark.parametrize("used", [(1, 2, 3, 4), (0, 1), (3, 5)])
@pytest.mark.parametrize("rows", [1, 6])
def test_operators_differentiate_only_what_requires_gradients(
    rows: int, used: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[PASSES], "ROWS", rows)
    compiled, plain, tensors, _ = compiled_case()
    given = [t.detach().requires_grad_(i in used) for i, t in enumerate(tensors)]
    actual, expected = (
        torch.autograd.grad(sum(v.square().sum() for v in function(*given)), [given[i] for i in used])
        for function in (compiled, plain)
    )
    for gradient, right in zip(actual, expected, strict=True):
        assert torch.allclose(gradient, right, atol=1e-11)


def test_exported_flow_contains_no_operator_of_semflow() -> None:
    flow, x = FlowSequence(block_of(AffineCoupling(4))), features(2, 4, 2, 3)
    exported = torch.export.export(flow, (x,))
    assert "semflow" not in str(exported.graph)
    for actual, expected in zip(exported.module()(x), flow(x), strict=True):
        assert torch.allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("onednn", [True, False])
def test_product_equals_linear_for_any_memory_layout(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With oneDNN, even if this CPU would not choose it: contiguous, transposed and strided weights, and no rows."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512" if onednn else "AVX2")
    product = sys.modules[PASSES]._product
    draw = generator()
    for rows in (0, 1, 5):
        x, bias = torch.randn(rows, 9, generator=draw)[:, 1:7], torch.randn(4, generator=draw)
        weight = torch.randn(4, 12, generator=draw)
        for w in (weight[:, :6].contiguous(), weight[:, :6].T.contiguous().T, weight[:, ::2]):
            assert torch.allclose(product(x, w, bias), nn.functional.linear(x, w, bias), atol=1e-5)
            assert torch.allclose(product(x, w), nn.functional.linear(x, w), atol=1e-5)
