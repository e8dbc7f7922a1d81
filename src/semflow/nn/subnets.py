"""Networks of a coupling, which map the passive half of the channels to scale and shift of the active half."""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow._devices import is_exported
from semflow._validation import at_least, checked, positive
from semflow.errors import ConfigError, ShapeError
from semflow.functional import from_locations, to_locations

from .cross_scale import ChannelNorm
from .position import PositionTables

Context = PositionTables | Tensor | None
"""Condition of a flow: position tables, a map (D, H, W) or (B, D, H, W), or None."""


class Subnet(nn.Module):
    """Base class of subnets; `subnet(x, context)` maps (B, in, H, W) to (B, out, H, W).

    `event` declares whether the output at a location depends on that location alone (`"location"`) or on other
    locations too (`"sample"`). The coupling around the subnet has the same event.

    Example:
        >>> LocationSubnet(4, 6).event, ConvSubnet(4, 6).event
        ('location', 'sample')
    """

    event: Literal["location", "sample"] = "location"


SubnetFactory = Callable[[int, int, int], Subnet] | Callable[[int, int], nn.Module]
"""Callable `factory(in_channels, out_channels, context_channels)` that makes the subnet of a coupling.

Or one in FrEIA's form, `f(in_channels, out_channels)`, that makes any network, see `NetworkSubnet`.
"""


class LocationSubnet(Subnet):
    """Linear, ReLU, linear at every location (a 1x1 subnet), conditioned on a position code or a map of vectors.

    W2 relu(Wx x + Wc c + b1) + b2. With a separable code, Wc c is two tables of W + H rows that are broadcast over the
    batch. The result equals that of the usual concatenation, W1 [x; c], without its condition of (B H W, D) numbers.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        context_channels: D; 0 for an unconditional subnet.
        hidden: Hidden units; by default 2 (in_channels + D), as in SANFlow and CFLOW-AD.

    Example:
        >>> from semflow.nn import SinusoidalPosition2d
        >>> subnet = LocationSubnet(20, 40, context_channels=128)
        >>> subnet(torch.randn(2, 20, 8, 8), SinusoidalPosition2d(128)(8, 8)).shape
        torch.Size([2, 40, 8, 8])
    """

    @checked
    def __init__(
        self, in_channels: int, out_channels: int, context_channels: int = 0, hidden: int | None = None
    ) -> None:
        super().__init__()
        hidden = 2 * (in_channels + context_channels) if hidden is None else hidden
        at_least(1, in_channels=in_channels, out_channels=out_channels, hidden=hidden)
        at_least(0, context_channels=context_channels)
        # Initialize one layer for [x; c] and split it, so that the split does not change the initialization.
        joint = nn.Linear(in_channels + context_channels, hidden)
        self.weight_x = nn.Parameter(joint.weight.detach()[:, :in_channels].clone())
        self.weight_context = nn.Parameter(joint.weight.detach()[:, in_channels:].clone()) if context_channels else None
        self.bias = nn.Parameter(joint.bias.detach().clone())
        self.output = nn.Linear(hidden, out_channels)
        self.context_channels = context_channels

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """Map (B, in, H, W) and a context to (B, out, H, W)."""
        batch, _, height, width = x.shape
        table = self.table(x, context)
        if is_exported():  # maps keep their layout
            one = table.shape[:2] == (1, 1)
            hidden = F.conv2d(x, self.weight_x[:, :, None, None], table[0, 0] if one else None)
            if not one:
                hidden = hidden + table.transpose(1, 2).unflatten(2, (height, width))
            return F.conv2d(F.relu(hidden), self.output.weight[:, :, None, None], self.output.bias)
        if table.shape[:2] == (1, 1):  # the same at every location, so a bias
            hidden = F.relu_(F.linear(to_locations(x), self.weight_x, table[0, 0]))
        else:
            # Not in place, because autograd copies the whole tensor for an in-place change through a view.
            hidden = F.linear(to_locations(x), self.weight_x).view(batch, height * width, -1) + table
            hidden = F.relu_(hidden).view(batch * height * width, -1)
        return from_locations(self.output(hidden), (height, width))

    def table(self, x: Tensor, context: Context = None) -> Tensor:
        """Return Wc c + b1, which is added to Wx x in the hidden units, (B or 1, H W or 1, hidden)."""
        check_context(context, self.context_channels, x)
        weight = self.weight_context
        if context is None or weight is None:
            return self.bias[None, None]
        if isinstance(context, PositionTables):
            # Split instead of two slices, whose gradients would each be as large as the whole weight.
            of_column, of_row = weight.split((context.column.shape[1], context.row.shape[1]), dim=1)
            column = F.linear(context.column.to(weight), of_column)
            row = F.linear(context.row.to(weight), of_row, self.bias)
            return (row[:, None] + column[None]).flatten(0, 1)[None]
        dense = context.to(weight)
        return F.linear(dense.view(-1, *dense.shape[-3:]).flatten(2).transpose(1, 2), weight, self.bias)

    def extra_repr(self) -> str:
        """Return the arguments that `repr` shows."""
        return f"in={self.weight_x.shape[1]}, context={self.context_channels}, hidden={self.weight_x.shape[0]}"


class ConvSubnet(Subnet):
    """Convolution, ReLU, convolution (FastFlow's subnet); its event is `"sample"` unless the kernel size is 1.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        context_channels: D; 0 for an unconditional subnet.
        hidden: Hidden channels; by default `hidden_ratio` (in_channels + D).
        kernel: Odd kernel size; 1 sees each location alone, and the event is then `"location"`.
        norm: Normalize the hidden channels of each location, as in MSFlow.
        hidden_ratio: Hidden channels per channel of the input and context.

    Example:
        >>> ConvSubnet(4, 8)(torch.randn(2, 4, 6, 6)).shape
        torch.Size([2, 8, 6, 6])
    """

    @checked
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        context_channels: int = 0,
        hidden: int | None = None,
        kernel: int = 3,
        norm: bool = False,
        hidden_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0 or kernel < 1:
            raise ConfigError(f"kernel must be odd, so that maps keep their sizes, but got {kernel}")
        self.event = "location" if kernel == 1 else "sample"
        self.context_channels = context_channels
        positive(hidden_ratio=hidden_ratio)
        hidden = max(1, int(hidden_ratio * (in_channels + context_channels))) if hidden is None else hidden
        at_least(1, in_channels=in_channels, out_channels=out_channels, hidden=hidden)
        at_least(0, context_channels=context_channels)
        self.first = nn.Conv2d(in_channels + context_channels, hidden, kernel, padding=kernel // 2)
        self.norm = ChannelNorm(hidden) if norm else nn.Identity()
        self.second = nn.Conv2d(hidden, out_channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """Map (B, in, H, W) and a context to (B, out, H, W)."""
        check_context(context, self.context_channels, x)
        if context is not None and self.context_channels:
            dense = context.dense() if isinstance(context, PositionTables) else context
            x = torch.cat((x, dense.to(x).expand(x.shape[0], -1, -1, -1)), dim=1)
        result: Tensor = self.second(F.relu_(self.norm(self.first(x))))
        return result


class PerceptronSubnet(Subnet):
    """Multilayer perceptron with ReLU at every location, DifferNet's subnet; it takes no context.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        context_channels: Must be 0; present because subnet factories are called with it.
        hidden: Units of each hidden layer.
        layers: Number of hidden layers.

    Example:
        >>> PerceptronSubnet(8, 16, hidden=32)(torch.randn(4, 8, 1, 1)).shape
        torch.Size([4, 16, 1, 1])
    """

    @checked
    def __init__(
        self, in_channels: int, out_channels: int, context_channels: int = 0, hidden: int = 2048, layers: int = 3
    ) -> None:
        super().__init__()
        if context_channels:
            raise ConfigError(f"context_channels must be 0, but got {context_channels}")
        at_least(1, in_channels=in_channels, out_channels=out_channels, layers=layers, hidden=hidden)
        widths = [in_channels, *[hidden] * layers, out_channels]
        parts = [part for sizes in pairwise(widths) for part in (nn.Linear(*sizes), nn.ReLU())]
        self.layers = nn.Sequential(*parts[:-1])

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        return cast(Tensor, self.layers(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def check_context(context: Context, channels: int, x: Tensor) -> None:
    """Raise ShapeError if the context is missing, or its channels or size do not match the subnet and `x`."""
    if not channels:
        return
    batch, _, *size = x.shape
    expected = (channels, *size)
    if context is None:
        raise ShapeError(f"context must be given: this flow has {channels} context channels, but got None")
    shape = (context.channels, *context.size) if isinstance(context, PositionTables) else tuple(context.shape)
    if shape not in (expected, (1, *expected), (batch, *expected)):
        raise ShapeError(f"context must be (D, H, W) = {expected} or (B, D, H, W), B = {batch}, but got {shape}")
