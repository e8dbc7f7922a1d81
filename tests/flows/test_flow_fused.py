"""The fused coupling is the plain composition: values and derivatives of every kind, and when it stands aside."""

from collections.abc import Iterator

import pytest
import torch
from flow_cases import D, blocks, context_of, features, generator
from torch import Tensor, nn

from semflow.flows import AffineCoupling, fused
from semflow.flows.fused import CouplingForm, coupling, plain
from semflow.nn import ConvSubnet, LocationSubnet, SinusoidalPosition2d
from semflow.testing.case import perturb

TABLES = {"for each image": (5, 3), "for all images": (1, 3), "everywhere": (1, 1)}


@pytest.fixture(autouse=True)
def _same_parameters() -> Iterator[None]:
    """Layers draw from torch's global generator: a fork of it, seeded, makes a failure come again."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def arguments(table: str, swap: bool, channels: int = 5, hidden: int = 7) -> tuple[list[Tensor], tuple[int, int]]:
    """Five images of three locations."""
    active, passive = channels // 2, channels - channels // 2
    shapes = [(15, channels), (*TABLES[table], hidden), (hidden, passive), (2 * active, hidden), (2 * active,)]
    draw = generator()
    tensors = [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes]
    return tensors, (active, passive) if swap else (passive, active)


@pytest.mark.parametrize("rows", [1, 6, 1024])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("clamp_form", ["tanh", "tanh_unit"])
def test_values_and_gradients_are_those_of_the_composition(
    clamp_form: str, table: str, swap: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the images are grouped into: one at a time, two and a rest of one, all at once."""
    monkeypatch.setattr(fused, "ROWS", rows)
    tensors, sizes = arguments(table, swap)
    form = CouplingForm(sizes, swap, 0.7, 1.3, clamp_form)
    weights = features(1, 1, 15, 6).double()[0, 0]
    results = []
    for function in (coupling, plain):
        z, log_det = function(*tensors, form)
        loss = (torch.cat((z, log_det[:, None]), 1) * weights).sum()
        results.append((z, log_det, *torch.autograd.grad(loss, tensors)))
    for came, right in zip(*results, strict=True):
        assert came.shape == right.shape
        assert (came - right).abs().max() <= 1e-12 * max(1, right.abs().max())


@pytest.mark.parametrize("table", TABLES)
def test_derivatives_of_every_kind(table: str) -> None:
    """Against finite differences: forward, backward and of second order."""
    tensors, sizes = arguments(table, swap=False, channels=3, hidden=4)
    form = CouplingForm(sizes, False, 0.7, 1.3, "tanh")
    assert torch.autograd.gradcheck(lambda *t: coupling(*t, form), tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda *t: coupling(*t, form), tensors)


@pytest.mark.parametrize("used", [(0, 1, 3), (1,), (2, 4), (0,)])
def test_only_what_is_asked_for_is_differentiated(used: tuple[int, ...]) -> None:
    """Features that come from a frozen backbone, a frozen flow under a learned code."""
    tensors, sizes = arguments("for all images", swap=True)
    form = CouplingForm(sizes, True, 0.7, 1.3, "tanh")
    given = [t.detach().requires_grad_(i in used) for i, t in enumerate(tensors)]
    for only in (0, 1):  # z alone, log_det alone
        came, right = (
            torch.autograd.grad(function(*given, form)[only].sum(), [given[i] for i in used], allow_unused=True)
            for function in (coupling, plain)
        )
        for ours, theirs in zip(came, right, strict=True):
            assert torch.allclose(ours, torch.zeros_like(ours) if theirs is None else theirs, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_a_stack_of_eight_blocks_is_its_composition(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = blocks(12).to(dtype)
    perturb(flow, 0.3, generator())
    x, context = features(3, 12, 4, 5).to(dtype).requires_grad_(), SinusoidalPosition2d(D)(4, 5)
    results = []
    for fits in (fused.fits, lambda *_: False):
        monkeypatch.setattr(fused, "fits", fits)
        z, log_det = flow(x, context)
        loss = z.square().mean() - log_det.mean()
        results.append((z, log_det, *torch.autograd.grad(loss, [x, *flow.parameters()])))
        with torch.inference_mode():  # keeps nothing, gives the same
            for kept, again in zip((z, log_det), flow(x, context), strict=True):
                assert (kept - again).abs().max() <= tolerance * max(1, kept.detach().abs().max())
    for came, right in zip(*results, strict=True):
        assert (came - right).abs().max() <= tolerance * max(1, right.abs().max())


def test_function_transforms_reach_through_it() -> None:
    flow = AffineCoupling(4, context_channels=D).double()
    x, context = features(2, 4, 2, 3).double(), SinusoidalPosition2d(D)(2, 3)

    def log_det(x: Tensor) -> Tensor:
        return flow(x, context)[1]

    backward, forward = torch.func.jacrev(log_det)(x), torch.func.jacfwd(log_det)(x)
    assert torch.allclose(backward, forward, atol=1e-12)
    several = torch.stack((x, 2 * x))
    assert torch.allclose(torch.vmap(log_det)(several), torch.stack([log_det(x) for x in several]), atol=1e-12)


def standing(flow: AffineCoupling, x: Tensor) -> bool:
    form = CouplingForm(flow.sizes, flow.swap, flow.gain, flow.clamp, flow.clamp_form)
    return fused.fits(flow.subnet, x, form)


def test_it_stands_aside_where_it_would_not_be_the_same() -> None:
    flow, x = AffineCoupling(4), features(1, 4, 2, 2)
    assert standing(flow, x)
    assert not standing(flow, x.half())
    assert not standing(AffineCoupling(4, clamp_form="atan"), x)
    assert not standing(AffineCoupling(4, ConvSubnet), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not standing(flow, x)

    class Own(LocationSubnet):
        pass

    assert not standing(AffineCoupling(4, Own), x)
    flow.subnet.output = nn.Sequential(flow.subnet.output)
    assert not standing(flow, x)


def test_a_hook_on_the_subnet_is_called() -> None:
    flow, seen = AffineCoupling(4), []
    flow.subnet.output.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    flow(features(2, 4, 2, 3))
    assert seen == [(12, 4)]


def test_backward_may_be_taken_twice() -> None:
    """What is kept is not worked on in place."""
    flow, x = AffineCoupling(6, context_channels=D), features(2, 6, 2, 3).requires_grad_()
    loss = flow(x, context_of(flow, 2, 3))[0].square().sum()
    first, second = (torch.autograd.grad(loss, [x, *flow.parameters()], retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
