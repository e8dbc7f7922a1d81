"""What is fused is the plain composition: values and derivatives of every kind; and when it stands aside."""

import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from helpers.flow_cases import D, blocks, features, generator
from semflow.flows import AffineCoupling, FlowSequence, GlobalAffine, HardPermutation, coupling_stack
from semflow.flows.kernels.fused import composition, composition_rest, fused, fused_rest
from semflow.flows.kernels.operators import operator
from semflow.flows.steps import CouplingForm
from semflow.nn import ConvSubnet, LocationSubnet, PerceptronSubnet, SinusoidalPosition2d
from semflow.testing.case import perturb

TABLES = {"for each image": (5, 3), "for all images": (1, 3), "everywhere": (1, 1)}


@pytest.fixture(autouse=True)
def _same_parameters() -> Iterator[None]:
    """Layers draw from torch's global generator: a fork of it, seeded, makes a failure come again."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


Function = Callable[..., tuple[Tensor, Tensor]]


def case(
    table: str, swap: bool = False, block: bool = True, clamp_form: str = "tanh", channels: int = 5, hidden: int = 7
) -> tuple[Function, Function, list[Tensor]]:
    """The fused function, the composition and their arguments: five images of three locations."""
    draw = generator()
    active, passive = channels // 2, channels - channels // 2
    form = CouplingForm((active, passive) if swap else (passive, active), swap, 0.7, 1.3, clamp_form)
    shapes = [(15, channels), (*TABLES[table], hidden), (hidden, passive), (2 * active, hidden), (2 * active,)]
    shapes += [(channels,), (channels,)] if block else []
    tensors = [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes]
    index = torch.randperm(channels, generator=draw) if block else None
    inverse = None if index is None else torch.argsort(index)
    return partial(fused, form, index=index, inverse=inverse), partial(composition, form, index), tensors


def rest_case(
    swap: bool = False, block: bool = True, clamp_form: str = "tanh", rows: bool = False
) -> tuple[Function, Function, list[Tensor]]:
    """The same from what any subnet gave: x and output, as rows or images, and affine, in place of five tensors."""
    ours, plain, (x, _, _, _, bias_out, *affine) = case("everywhere", swap, block, clamp_form)
    draw, (images, *places) = generator(), (15,) if rows else (5, 3)
    shapes = [(images, channels, *places) for channels in (x.shape[1], len(bias_out))]
    given = [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes]
    return partial(fused_rest, *ours.args, **ours.keywords), partial(composition_rest, *plain.args), [*given, *affine]


@pytest.mark.parametrize("rows", [1, 6, 1024])
@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("clamp_form", ["tanh", "tanh_unit"])
def test_values_and_gradients_are_those_of_the_composition(
    clamp_form: str, table: str, swap: bool, block: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the images are grouped into: one at a time, two and a rest of one, all at once."""
    monkeypatch.setattr(sys.modules["semflow.flows.kernels.passes"], "ROWS", rows)
    same_values_and_gradients(*case(table, swap, block, clamp_form))


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("elements", [1, 10, 30, 2**18])
@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("clamp_form", ["tanh", "tanh_unit"])
def test_so_are_those_of_what_follows_another_subnet(
    clamp_form: str, swap: bool, block: bool, elements: int, rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In tiles of one location, of two, of two images, all at once."""
    monkeypatch.setattr(sys.modules["semflow.flows.kernels.passes"], "ELEMENTS", elements)
    same_values_and_gradients(*rest_case(swap, block, clamp_form, rows))


def same_values_and_gradients(ours: Function, plain: Function, tensors: list[Tensor]) -> None:
    weights = features(1, 5, 3, 6).double()[0]
    results = []
    for function in (ours, plain):
        z, log_det = function(*tensors)
        channels_last = (t.movedim(1, -1).reshape(5, 3, -1) for t in (z, log_det.unsqueeze(1)))
        loss = (torch.cat(list(channels_last), 2) * weights).sum()
        results.append((z, log_det, *torch.autograd.grad(loss, tensors)))
    for came, right in zip(*results, strict=True):
        assert came.shape == right.shape
        assert (came - right).abs().max() <= 1e-12 * max(1, right.abs().max())


@pytest.mark.parametrize(
    ("table", "block"), [("for each image", False), ("for all images", True), ("everywhere", True)]
)
def test_derivatives_of_every_kind(table: str, block: bool) -> None:
    """Against finite differences: forward, backward and of second order."""
    ours, _, tensors = case(table, block=block, channels=3, hidden=3)
    assert torch.autograd.gradcheck(ours, tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(ours, tensors)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("block", [False, True])
def test_derivatives_of_every_kind_of_what_follows_another_subnet(block: bool, rows: bool) -> None:
    ours, _, tensors = rest_case(block=block, rows=rows)
    assert torch.autograd.gradcheck(ours, tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(ours, tensors)


@pytest.mark.parametrize("used", [(0, 1, 3), (1, 5), (2, 4, 6), (0,)])
def test_only_what_is_asked_for_is_differentiated(used: tuple[int, ...]) -> None:
    """Features that come from a frozen backbone, a frozen flow under a learned code."""
    ours, plain, tensors = case("for all images", swap=True)
    given = [t.detach().requires_grad_(i in used) for i, t in enumerate(tensors)]
    for only in (0, 1):  # z alone, log_det alone
        came, right = (
            torch.autograd.grad(function(*given)[only].sum(), [given[i] for i in used], allow_unused=True)
            for function in (ours, plain)
        )
        for gradient, expected in zip(came, right, strict=True):
            assert torch.allclose(gradient, torch.zeros_like(gradient) if expected is None else expected, atol=1e-12)


STACKS: dict[str, Callable[[], FlowSequence]] = {
    "locations": lambda: coupling_stack(11, 8, context_channels=D, standardize=True, clamp_form="tanh_unit"),
    "locations, swapped": lambda: blocks(11),
    "neighbours": lambda: coupling_stack(11, 4, (ConvSubnet, partial(ConvSubnet, kernel=1)), clamp=2.0),
    "neighbours, conditional": lambda: coupling_stack(11, 2, (ConvSubnet,), context_channels=D),
}


@pytest.mark.parametrize("large", [1, 2**19])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_a_stack_of_blocks_is_its_composition(
    dtype: torch.dtype, tolerance: float, stack: str, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As blocks, as couplings that are fused alone, and plain; maps that count as large, and maps that do not."""
    monkeypatch.setattr(sys.modules["semflow.flows.coupling"], "LARGE", large)
    flow = STACKS[stack]()
    flow.to(dtype)
    perturb(flow, 0.3, generator())
    x, context = features(3, 11, 4, 5).to(dtype).requires_grad_(), SinusoidalPosition2d(D)(4, 5)
    results = []
    for turned_off in (None, "semflow.flows.sequence._block", "semflow.flows.coupling.AffineCoupling.fuses"):
        if turned_off:
            monkeypatch.setattr(turned_off, lambda *_: None)
        z, log_det = flow(x, context)
        loss = z.square().mean() - log_det.mean()
        results.append((z, log_det, *torch.autograd.grad(loss, [x, *flow.parameters()])))
        with torch.inference_mode():  # keeps nothing, gives the same
            for kept, again in zip((z, log_det), flow(x, context), strict=True):
                assert (kept - again).abs().max() <= tolerance * max(1, kept.detach().abs().max())
    for came in results[:2]:
        for ours, plain in zip(came, results[2], strict=True):
            assert (ours - plain).abs().max() <= tolerance * max(1, plain.abs().max())


def test_function_transforms_reach_through_it() -> None:
    flow = AffineCoupling(4, context_channels=D).double()
    x, context = features(2, 4, 2, 3).double(), SinusoidalPosition2d(D)(2, 3)

    def log_det(x: Tensor) -> Tensor:
        return flow(x, context)[1]

    backward, forward = torch.func.jacrev(log_det)(x), torch.func.jacfwd(log_det)(x)
    assert torch.allclose(backward, forward, atol=1e-12)
    several = torch.stack((x, 2 * x))
    assert torch.allclose(torch.vmap(log_det)(several), torch.stack([log_det(x) for x in several]), atol=1e-12)


def test_it_stands_aside_where_it_would_not_be_the_same() -> None:
    flow, x = AffineCoupling(4), features(1, 4, 2, 2)
    assert flow.fuses(x)
    assert not flow.fuses(x.half())
    assert not AffineCoupling(4, clamp_form="atan").fuses(x)
    assert not AffineCoupling(4, PerceptronSubnet).fuses(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not flow.fuses(x)

    class Own(LocationSubnet):
        pass

    assert not AffineCoupling(4, Own).fuses(x)
    flow.subnet.output = nn.Sequential(flow.subnet.output)
    assert not flow.fuses(x)


def test_blocks_are_what_a_stack_is_made_of_and_nothing_else() -> None:
    x = features(1, 4, 2, 2)
    triple = [AffineCoupling(4), GlobalAffine(4), HardPermutation(4)]
    assert len(list(FlowSequence([HardPermutation(4), *triple, *triple, triple[0]])._steps(x))) == 4
    assert len(list(FlowSequence([*triple[1:], *triple[:2]])._steps(x))) == 4
    for wrong in (GlobalAffine(1), HardPermutation(3)):  # whose own complaint, or broadcasting, is to be met
        parts = [wrong if type(part) is type(wrong) else part for part in triple]
        assert len(list(FlowSequence(parts)._steps(x))) == 3


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("where", ["flows.0", "flows.0.subnet", "flows.0.subnet.output", "flows.1", "flows.2"])
def test_a_hook_is_called(where: str, kind: str) -> None:
    flow, seen = FlowSequence([AffineCoupling(4), GlobalAffine(4), HardPermutation(4)]), []
    getattr(flow.get_submodule(where), f"register_{kind}_hook")(lambda *_: seen.append(where))
    z, log_det = flow(features(2, 4, 2, 3).requires_grad_())
    (z.sum() + log_det.sum()).backward()
    assert seen == [where]


@pytest.mark.parametrize("stack", STACKS)
def test_of_no_image_the_gradients_are_zero(stack: str) -> None:
    flow = STACKS[stack]()
    x = torch.zeros(0, 11, 4, 5, requires_grad=True)
    z, log_det = flow(x, SinusoidalPosition2d(D)(4, 5))
    (z.sum() + log_det.sum()).backward()
    assert x.grad is not None
    assert all(p.grad is not None and not p.grad.any() for p in flow.parameters())


def test_backward_may_be_taken_twice() -> None:
    """What is kept is not worked on in place, nor is a gradient that comes in."""
    flow, x = blocks(6, count=2), features(2, 6, 2, 3).requires_grad_()
    z, _ = flow(x, SinusoidalPosition2d(D)(2, 3))
    given = torch.ones_like(z)
    first, second = (torch.autograd.grad(z, [x, *flow.parameters()], given, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(given, torch.ones_like(z))


@pytest.mark.parametrize("block", [False, True])
def test_the_operators_of_compiled_blocks_are_sound(block: bool) -> None:
    """Schemas, shapes without data and autograd's part, by torch's own check; numbers, by the composition."""
    ours, plain, tensors = case("for all images", block=block)
    form, index, inverse = ours.args[0], ours.keywords["index"], ours.keywords["inverse"]
    numbers = ([*form.sizes], form.swap, [form.gain, form.clamp], form.clamp_form, True)
    arguments = (*tensors[:5], tensors[5:], index, inverse, *numbers)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(torch.ops.semflow.block_2.default, arguments, test_utils=checks)
    for came, right in zip(operator(form, True, index, inverse, *tensors), plain(*tensors), strict=True):
        assert torch.allclose(came, right, atol=1e-12)
        gradients = (
            torch.autograd.grad(v.square().sum(), tensors, None, True, allow_unused=True) for v in (came, right)
        )
        for gradient, expected in zip(*gradients, strict=True):
            assert torch.allclose(gradient, torch.zeros_like(gradient) if expected is None else expected, atol=1e-11)


@pytest.mark.parametrize("used", [(1, 2, 3, 4), (0, 1), (3, 5)])
@pytest.mark.parametrize("rows", [1, 6])
def test_the_operators_differentiate_what_is_asked_for(
    rows: int, used: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In groups, and without the gradient of features that come from a frozen backbone."""
    monkeypatch.setattr(sys.modules["semflow.flows.kernels.passes"], "ROWS", rows)
    ours, plain, tensors = case("for all images")
    given = [t.detach().requires_grad_(i in used) for i, t in enumerate(tensors)]
    compiled = partial(operator, ours.args[0], True, ours.keywords["index"], ours.keywords["inverse"])
    came, right = (
        torch.autograd.grad(sum(v.square().sum() for v in function(*given)), [given[i] for i in used])
        for function in (compiled, plain)
    )
    for gradient, expected in zip(came, right, strict=True):
        assert torch.allclose(gradient, expected, atol=1e-11)


def test_an_exported_flow_runs_without_this_library() -> None:
    flow, x = FlowSequence([AffineCoupling(4), GlobalAffine(4), HardPermutation(4)]), features(2, 4, 2, 3)
    exported = torch.export.export(flow, (x,))
    assert "semflow" not in str(exported.graph)
    for came, right in zip(exported.module()(x), flow(x), strict=True):
        assert torch.allclose(came, right, atol=1e-6)
