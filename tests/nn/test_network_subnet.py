"""Subnets of any network: their events, contexts and shapes, and the laws of the couplings around them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from semflow.errors import ConfigError, ShapeError
from semflow.flows import AffineCoupling, CrossScaleCoupling, coupling_stack
from semflow.nn import ConvSubnet, LocationSubnet, NetworkSubnet, SinusoidalPosition2d
from semflow.testing import check_flow

C, SIZE, D = 6, (3, 4), 8


def perceptron(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.LayerNorm(8), nn.Sequential(nn.SiLU(), nn.Linear(8, outputs)))


def convolutions(inputs: int, outputs: int, kernel: int = 3) -> nn.Module:
    first = nn.Conv2d(inputs, 8, kernel, padding=kernel // 2)
    return nn.Sequential(first, nn.BatchNorm2d(8), nn.Softplus(), nn.Conv2d(8, outputs, 1)).eval()


class Unknown(nn.Module):
    """Network whose event is not known from its layers: it adds the mean of all locations."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y + y.mean((2, 3), keepdim=True)


class Declared(Unknown):
    event = "sample"


class OfRows(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 2
        return torch.tanh(self.layer(x))


class WithContext(nn.Module):
    """Network in semflow's form that is no `Subnet`."""

    event = "location"

    def __init__(self, inputs: int, outputs: int, context_channels: int) -> None:
        super().__init__()
        self.own = LocationSubnet(inputs, outputs, context_channels)

    def forward(self, x: Tensor, context: Any) -> Tensor:
        return self.own(x, context)


MADE: dict[str, tuple[Callable[..., Any], str]] = {
    "rows": (perceptron, "location"),
    "maps": (convolutions, "sample"),
    "1x1": (partial(convolutions, kernel=1), "location"),
    "layer": (nn.Linear, "location"),
    "convolution": (partial(nn.Conv2d, kernel_size=3, padding=1), "sample"),
    "declared by the class": (Declared, "sample"),
    "declared": (lambda i, o: NetworkSubnet(Unknown(i, o), "sample"), "sample"),
    "declared rows": (lambda i, o: NetworkSubnet(OfRows(i, o), "location", rows=True), "location"),
    "semflow's": (ConvSubnet, "sample"),
    "semflow's with an option": (partial(ConvSubnet, kernel=1), "location"),
    "three arguments": (WithContext, "location"),
    "any arguments": (lambda *a: LocationSubnet(*a), "location"),
    "module": (convolutions, "sample"),
}


@pytest.mark.parametrize("context", [0, D])
@pytest.mark.parametrize("name", MADE)
def test_coupling_of_any_network_satisfies_the_laws(name: str, context: int) -> None:
    subnet, event = MADE[name]
    position = SinusoidalPosition2d(D)(*SIZE) if context else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        given = subnet(C // 2 + context, C) if name == "module" else subnet
        flow = AffineCoupling(C, given, context, gain=1.0)
        x = torch.randn(2, C, *SIZE)
    assert flow.event == event
    check_flow(flow, x, position, compile_backend=None)


def test_context_is_added_to_the_input_of_the_network() -> None:
    flow = AffineCoupling(C, perceptron, D)
    position = SinusoidalPosition2d(D)(*SIZE)
    x = torch.randn(2, C, *SIZE)
    code = position.dense().expand(2, -1, -1, -1)
    rows = torch.cat((x[:, : C // 2], code), dim=1).movedim(1, -1)
    right = flow.subnet.network(rows).movedim(-1, 1)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(flow.subnet(x[:, : C // 2], position), right)


ASK = "event must be 'location' or 'sample' for the subnet {}, but got None; set {}.event, or construct NetworkSubnet"
REJECTED: dict[str, tuple[Any, str]] = {
    "unknown": (Unknown, ASK.format("Unknown", "Unknown")),
    "normalization over locations": (
        lambda i, o: nn.Sequential(nn.Conv2d(i, o, 1), nn.GroupNorm(1, o)),
        ASK.format("Sequential", "Sequential"),
    ),
    "rows and maps": (
        lambda i, o: nn.Sequential(nn.Conv2d(i, i, 1), nn.Linear(i, o)),
        ASK.format("Sequential", "Sequential"),
    ),
    "a sequence of its own": (
        lambda i, o: type("Mine", (nn.Sequential,), {})(nn.Conv2d(i, o, 1)),
        ASK.format("Mine", "Mine"),
    ),
    "no module": (lambda i, o: 3, "subnet must be or construct an nn.Module, but got int"),
    "a class": (lambda i, o: Unknown, "subnet must be or construct an nn.Module, but got the class Unknown"),
    "a name": ("conv", "subnet must be a module or construct one, but got str"),
    "rows of a sample": (
        lambda i, o: NetworkSubnet(nn.Linear(i, o), "sample"),
        r"event must be 'location' for a subnet of rows \(N, C\), but got 'sample'",
    ),
    "event": (lambda i, o: NetworkSubnet(nn.Linear(i, o), "pixel"), "event must be location or sample"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", REJECTED)
def test_networks_that_are_no_subnets_are_rejected(name: str) -> None:
    subnet, message = REJECTED[name]
    with pytest.raises(ConfigError, match=message):
        AffineCoupling(C, subnet)


def test_one_module_is_not_shared_by_several_couplings() -> None:
    with pytest.raises(ConfigError, match="subnets must construct a module for each block, but got the module Seq"):
        coupling_stack(C, 2, subnets=(perceptron(C // 2, C),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "subnet",
    [lambda i, o: nn.Conv2d(i, 2, 1), lambda i, o: nn.Conv2d(i, o, 3), lambda i, o: nn.Linear(i, 2), nn.Flatten],
    ids=["one scale for all channels", "smaller maps", "rows", "flat"],
)
def test_output_of_another_shape_is_rejected(subnet: Any) -> None:
    """A scale of one channel would broadcast, and be counted once in the log-det."""
    flow = AffineCoupling(C, (lambda i, o: NetworkSubnet(subnet(), "sample")) if subnet is nn.Flatten else subnet)
    with pytest.raises(ShapeError, match=r"subnet must return \(B, out, H, W\) = \(2, 6, 3, 4\), but got \("):
        flow(torch.randn(2, C, *SIZE))


def test_cross_scale_subnets_of_another_shape_are_rejected() -> None:
    class Narrow(nn.Module):
        def __init__(self, inputs: Any, outputs: Any) -> None:
            super().__init__()

        def forward(self, maps: list[Tensor]) -> list[Tensor]:
            return [x[:, :2] for x in maps]

    flow = CrossScaleCoupling((4, 6), Narrow)
    with pytest.raises(ShapeError, match=r"subnet must return maps \[\(2, 4, 4, 4\), \(2, 6, 2, 2\)\], but got"):
        flow([torch.randn(2, 4, 4, 4), torch.randn(2, 6, 2, 2)])
