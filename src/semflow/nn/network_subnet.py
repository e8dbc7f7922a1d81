"""Subnets made of any network."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from semflow._validation import at_least, checked, kind_of
from semflow.errors import ConfigError, ShapeError
from semflow.functional import from_locations, to_locations

from .position import PositionTables
from .subnets import Context, Subnet, check_context

# Layers without a say in the event: they change each number, or normalize each channel over the batch.
_NEUTRAL = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh),
    *(nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanhshrink),
    *(nn.Dropout, nn.Identity),
)
_ROWS = (nn.Linear, nn.LayerNorm, nn.BatchNorm1d)
_MAPS = (nn.Conv2d, nn.BatchNorm2d, nn.Dropout2d)


class NetworkSubnet(Subnet):
    """Subnet of a network of your own, in FrEIA's form: `network(x)`, with the context as further channels of x.

    Couplings make it of any network. You need it only to declare what cannot be known: the event of a network other
    than an `nn.Sequential` of linear layers or convolutions, activations, dropout and normalizations.

    Args:
        network: maps (B, in + D, H, W) to (B, out, H, W), or rows (N, in + D) to (N, out).
        event: `"location"` if the output at a location depends on that location alone, otherwise `"sample"`.
        rows: whether the network takes locations as rows (N, C); by default only if it has linear layers.
        context_channels: D; 0 for an unconditional subnet.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 8, 1))
        >>> subnet = NetworkSubnet(network)
        >>> subnet.event, subnet(torch.randn(2, 4, 6, 6)).shape
        ('sample', torch.Size([2, 8, 6, 6]))
    """

    @checked
    def __init__(
        self,
        network: nn.Module,
        event: Literal["location", "sample"] | None = None,
        rows: bool | None = None,
        context_channels: int = 0,
    ) -> None:
        super().__init__()
        at_least(0, context_channels=context_channels)
        if not isinstance(network, nn.Module):
            raise ConfigError(f"subnet must be or construct an nn.Module, but got {kind_of(network)}")
        known, has_rows = _structure(network)
        event = event or known
        if event is None:
            name = type(network).__name__
            raise ConfigError(
                f"event must be 'location' or 'sample' for the subnet {name}, but got None; set {name}.event, or "
                "construct NetworkSubnet(network, event)"
            )
        self.rows = has_rows if rows is None else rows
        if self.rows and event == "sample":
            raise ConfigError("event must be 'location' for a subnet of rows (N, C), but got 'sample'")
        self.event, self.network, self.context_channels = event, network, context_channels

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """Map (B, in, H, W) and a context to (B, out, H, W)."""
        check_context(context, self.context_channels, x)
        size = (x.shape[2], x.shape[3])
        if context is not None and self.context_channels:
            dense = context.dense() if isinstance(context, PositionTables) else context
            x = torch.cat((x, dense.to(x).expand(x.shape[0], -1, -1, -1)), dim=1)
        y: Tensor = self.network(to_locations(x) if self.rows else x)
        if self.rows and (not isinstance(y, Tensor) or y.dim() != 2):
            raise ShapeError(f"{type(self.network).__name__} must return (N, out), but got {given_shape(y)}")
        return from_locations(y, size) if self.rows else y

    def extra_repr(self) -> str:
        """Return the event for `repr`."""
        return f"event={self.event}, context={self.context_channels}"


def given_shape(y: object) -> object:
    """Return the shape of a tensor, or the class of another value, for error messages."""
    return tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__


def make_subnet(subnet: Any, in_channels: int, out_channels: int, context_channels: int = 0) -> Subnet:
    """Return the subnet of a coupling.

    Args:
        subnet: a `SubnetFactory`; or a constructor in FrEIA's form, `f(in_channels, out_channels)`, whose module gets
            the context as further channels of its input; or a module.
        in_channels: channels of the input.
        out_channels: channels of the output.
        context_channels: D.

    Example:
        >>> def perceptron(inputs, outputs):
        ...     return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))
        >>> make_subnet(perceptron, 4, 8).event
        'location'
    """
    given = context_channels
    if isinstance(subnet, nn.Module):
        made: Any = subnet
        takes_context = isinstance(subnet, Subnet)
    elif not callable(subnet):
        raise ConfigError(f"subnet must be a module or construct one, but got {type(subnet).__name__}")
    elif takes_context := _takes_context(subnet):
        made = subnet(in_channels, out_channels, context_channels)
    else:
        made = subnet(in_channels + context_channels, out_channels)
    if isinstance(made, Subnet) and (takes_context or not given):
        return made
    if takes_context and isinstance(made, nn.Module) and _takes_context(made.forward, 2):
        vars(made)["event"] = NetworkSubnet(made).event  # asks for it if it is not declared
        return cast(Subnet, made)
    return NetworkSubnet(made, context_channels=given)


def _takes_context(function: Callable[..., Any], count: int = 3) -> bool:
    """Return whether the last of `count` arguments can be meant for the context."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        return False
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
    if len(positional) < count or positional[-1].name == "kernel_size":  # nn.Conv2d
        return False
    return positional[-1].default is inspect.Parameter.empty or "context" in positional[-1].name


def _structure(network: nn.Module) -> tuple[Literal["location", "sample"] | None, bool]:
    """Return the event of a network, declared or known from its layers, or None; and whether it takes rows."""
    layers = list(_layers(network))
    plain = all(isinstance(layer, (*_NEUTRAL, *_ROWS, *_MAPS)) for layer in layers)
    rows = plain and any(isinstance(layer, nn.Linear) for layer in layers)
    declared = getattr(network, "event", None)
    if declared in get_args(Literal["location", "sample"]):
        return declared, rows
    if not plain or (rows and any(isinstance(layer, _MAPS) for layer in layers)):
        return None, False
    if rows:
        return "location", True
    if any(isinstance(layer, _ROWS) for layer in layers):
        return None, False
    kernels = {layer.kernel_size for layer in layers if isinstance(layer, nn.Conv2d)}
    return "location" if kernels <= {(1, 1)} else "sample", False


def _layers(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of a network; of other modules than sequences nothing is known."""
    if type(network) is nn.Sequential:
        for layer in network:
            yield from _layers(layer)
    else:
        yield network
