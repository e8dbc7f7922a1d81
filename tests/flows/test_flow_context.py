"""Separable position tables give the same results as the concatenated code, without building it."""

from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.flow_cases import features
from semflow.flows import AffineCoupling
from semflow.nn import (
    Context,
    ConvSubnet,
    FourierPosition2d,
    LearnedPosition2d,
    LocationSubnet,
    PositionTables,
    SinusoidalPosition2d,
    Subnet,
)


@pytest.fixture(autouse=True)
def _seeded_parameters() -> Iterator[None]:
    """Seed torch's global generator, from which layers draw their parameters, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class Concatenating(Subnet):
    """Published form, W2 relu(W1 [x; code] + b1) + b2, with the code repeated for every location of every image."""

    def __init__(self, subnet: LocationSubnet) -> None:
        super().__init__()
        joint = torch.cat((subnet.weight_x, subnet.weight_context), dim=1).detach()
        self.first = nn.Linear(joint.shape[1], joint.shape[0]).to(joint)
        with torch.no_grad():
            self.first.weight.copy_(joint)
            self.first.bias.copy_(subnet.bias)
        self.output = deepcopy(subnet.output)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        code = context.dense() if isinstance(context, PositionTables) else context
        joint = torch.cat((x, code.expand(len(x), -1, -1, -1)), dim=1).permute(0, 2, 3, 1)
        return self.output(F.relu(self.first(joint))).permute(0, 3, 1, 2)


def concatenating(flow: AffineCoupling) -> AffineCoupling:
    other = deepcopy(flow)
    other.subnet = Concatenating(flow.subnet)
    return other


KINDS = ("sinusoids", "fourier", "learned", "map", "map for all", "map each")


def contexts(height: int, width: int) -> dict[str, Any]:
    learned = LearnedPosition2d(16, height + 1, width + 2)
    return {
        "sinusoids": SinusoidalPosition2d(16)(height, width),
        "fourier": FourierPosition2d(16)(height, width),
        "learned": learned(height, width),
        "map": features(1, 16, height, width, seed=5)[0],
        "map for all": features(1, 16, height, width, seed=6),
        "map each": features(3, 16, height, width, seed=7),
    }


def to(context: Context, dtype: torch.dtype) -> Context:
    return PositionTables(*(t.to(dtype) for t in context)) if isinstance(context, tuple) else context.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "size"), [(2, (1, 1)), (7, (5, 3)), (40, (4, 6))])
def test_position_tables_match_the_concatenated_code(
    channels: int, size: tuple[int, int], kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Compares values, inverses, and the gradients of x and of all parameters."""
    flow = AffineCoupling(channels, context_channels=16, gain=1.0).to(dtype)
    published = concatenating(flow)
    context = to(contexts(*size)[kind], dtype)
    x = features(3, channels, *size).to(dtype)

    def results(module: AffineCoupling) -> tuple[list[Tensor], list[Tensor]]:
        given = x.clone().requires_grad_()
        z, log_det = module(given, context)
        back = module.inverse(z.detach(), context)
        loss = z.square().mean() - log_det.mean()
        return [z, log_det, back], list(torch.autograd.grad(loss, [given, *module.parameters()], retain_graph=True))

    (ours, gradients), (theirs, published_gradients) = results(flow), results(published)
    for actual, right in zip(ours, theirs, strict=True):
        assert (actual - right).abs().max() <= tolerance * max(1, right.abs().max())
    x_gradient, *by_parameter = gradients
    named = dict(zip([name for name, _ in flow.named_parameters()], by_parameter, strict=True))
    ours = [
        x_gradient,
        torch.cat((named["subnet.weight_x"], named["subnet.weight_context"]), dim=1),
        *(named[f"subnet.{name}"] for name in ("bias", "output.weight", "output.bias")),
    ]
    for actual, right in zip(ours, published_gradients, strict=True):
        assert (actual - right).abs().max() <= tolerance * max(1, right.abs().max())


@pytest.mark.parametrize("subnet", [LocationSubnet, partial(ConvSubnet, hidden=6)])
def test_dense_code_matches_its_tables(subnet: Any) -> None:
    flow, x = AffineCoupling(6, subnet, context_channels=16), features(3, 6, 4, 5)
    tables = SinusoidalPosition2d(16)(4, 5)
    dense = tables.dense()
    expected = flow(x, tables)
    for context in (dense, dense[None], dense.expand(3, -1, -1, -1)):
        for actual, right in zip(flow(x, context), expected, strict=True):
            assert torch.allclose(actual, right, atol=1e-5)


def test_context_per_image_conditions_that_image() -> None:
    flow, x = AffineCoupling(6, context_channels=16), features(1, 6, 4, 5).expand(2, -1, -1, -1)
    context = features(2, 16, 4, 5, seed=3)
    z, _ = flow(x, context)
    assert not torch.allclose(z[0], z[1])
    for i in range(2):
        assert torch.allclose(flow(x[i : i + 1], context[i : i + 1])[0], z[i : i + 1], atol=1e-6)


def test_learned_tables_have_gradients() -> None:
    code = LearnedPosition2d(16, 6, 6)
    z, log_det = AffineCoupling(6, context_channels=16)(features(2, 6, 4, 5), code(4, 5))
    (z.sum() + log_det.sum()).backward()
    assert (code.row.grad[:4].abs().sum(1) > 0).all()
    assert (code.column.grad[:5].abs().sum(1) > 0).all()
    assert not code.row.grad[4:].any()


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that an operation creates."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_condition_per_location_is_never_built() -> None:
    """With few hidden units the condition would be the largest tensor, with B H W D numbers."""
    batch, height, width, d = 4, 8, 8, 512
    flow = AffineCoupling(6, partial(LocationSubnet, hidden=4), context_channels=d)
    tables, x = SinusoidalPosition2d(d)(height, width), features(batch, 6, height, width)
    largest = {}
    for name, module in (("factored", flow), ("concatenating", concatenating(flow))):
        with Largest() as mode:
            z, log_det = module(x, tables)
            (z.sum() + log_det.sum()).backward()
        largest[name] = mode.numbers
    assert largest["concatenating"] >= batch * height * width * d
    assert largest["factored"] < batch * height * width * d / 16
