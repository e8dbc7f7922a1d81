"""The networks inside a coupling: from the passive half of the channels to the scale and shift of the active half."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow._validation import at_least, checked
from semflow.errors import ConfigError, ShapeError
from semflow.functional import from_locations, to_locations

from .cross_scale import ChannelNorm
from .position import PositionTables

__all__ = ["Context", "ConvSubnet", "LocationSubnet", "Subnet", "SubnetFactory"]

Context = PositionTables | Tensor | None
"""What a flow may be conditioned on: position tables, or a map (D, H, W) or (B, D, H, W), or nothing."""


class Subnet(nn.Module):
    """The interface: `subnet(x, context)` maps (B, in, H, W) to (B, out, H, W).

    `event` declares whether the output at a location depends on that location alone (`"location"`) or on its
    neighbours too (`"sample"`); the flow around it inherits the declaration.

    Example:
        >>> subnet = LocationSubnet(4, 6)
        >>> subnet(torch.randn(2, 4, 3, 5)).shape, subnet.event
        (torch.Size([2, 6, 3, 5]), 'location')
    """

    event: Literal["location", "sample"] = "location"


SubnetFactory = Callable[[int, int, int], Subnet]
"""`factory(in_channels, out_channels, context_channels)`, what a coupling is given to make its subnet."""


class LocationSubnet(Subnet):
    """Linear, ReLU, linear at every location (a 1x1 subnet), conditioned on a position code or on a map.

    W2 relu(Wx x + Wc c + b1) + b2. With a separable code, Wc c is two tables of W + H rows which are broadcast over the
    batch: the (B H W, D) condition of the concatenating form, W1 [x; c], is never built, and the result is the same.

    Args:
        in_channels, out_channels: of the map.
        context_channels: D; 0 for an unconditional subnet.
        hidden: hidden units; by default 2 (in_channels + D), as in SANFlow and CFLOW-AD.

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
        # One default initialisation for [x; c], so that the split changes nothing, then its two parts.
        joint = nn.Linear(in_channels + context_channels, hidden)
        self.weight_x = nn.Parameter(joint.weight.detach()[:, :in_channels].clone())
        self.weight_context = nn.Parameter(joint.weight.detach()[:, in_channels:].clone()) if context_channels else None
        self.bias = nn.Parameter(joint.bias.detach().clone())
        self.output = nn.Linear(hidden, out_channels)
        self.context_channels = context_channels

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """(B, in, H, W) and a context to (B, out, H, W)."""
        batch, _, height, width = x.shape
        table = self.table(x, context)
        if table.shape[:2] == (1, 1):  # the same everywhere: a bias
            hidden = F.relu_(F.linear(to_locations(x), self.weight_x, table[0, 0]))
        else:
            # The sum is not taken in place: autograd pays for a change through a view with copies of the whole.
            hidden = F.linear(to_locations(x), self.weight_x).view(batch, height * width, -1) + table
            hidden = F.relu_(hidden).view(batch * height * width, -1)
        return from_locations(self.output(hidden), (height, width))

    def table(self, x: Tensor, context: Context = None) -> Tensor:
        """What the hidden units get besides Wx x: Wc c + b1 as (B, H W, hidden); either may be 1.

        Raises:
            ShapeError: the context does not fit x and the subnet.
        """
        check_context(context, self.context_channels, x)
        weight = self.weight_context
        if context is None or weight is None:
            return self.bias[None, None]
        if isinstance(context, PositionTables):
            # A split: two slices would each be given a gradient of the whole weight, mostly zeros.
            of_column, of_row = weight.split((context.column.shape[1], context.row.shape[1]), dim=1)
            column = F.linear(context.column.to(weight), of_column)
            row = F.linear(context.row.to(weight), of_row, self.bias)
            return (row[:, None] + column[None]).flatten(0, 1)[None]
        dense = context.to(weight)
        return F.linear(dense.view(-1, *dense.shape[-3:]).flatten(2).transpose(1, 2), weight, self.bias)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"in={self.weight_x.shape[1]}, context={self.context_channels}, hidden={self.weight_x.shape[0]}"


class ConvSubnet(Subnet):
    """Convolution, ReLU, convolution: a subnet that sees the neighbourhood (FastFlow's), so its event is the sample.

    Args:
        in_channels, out_channels, context_channels: as in `LocationSubnet`.
        hidden: hidden channels; by default those of the input and context together, times `hidden_ratio`.
        kernel: odd kernel size; 1 makes it see one location only and its event `"location"`.
        norm: normalise the hidden channels of each location (MSFlow's).
        hidden_ratio: see `hidden`.

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
            raise ConfigError(f"kernel must be odd, so that the map keeps its size, but got {kernel}")
        self.event = "location" if kernel == 1 else "sample"
        self.context_channels = context_channels
        if not hidden_ratio > 0:
            raise ConfigError(f"hidden_ratio must be positive, but got {hidden_ratio}")
        hidden = max(1, int(hidden_ratio * (in_channels + context_channels))) if hidden is None else hidden
        at_least(1, in_channels=in_channels, out_channels=out_channels, hidden=hidden)
        at_least(0, context_channels=context_channels)
        self.first = nn.Conv2d(in_channels + context_channels, hidden, kernel, padding=kernel // 2)
        self.norm = ChannelNorm(hidden) if norm else nn.Identity()
        self.second = nn.Conv2d(hidden, out_channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """(B, in, H, W) and a context to (B, out, H, W)."""
        check_context(context, self.context_channels, x)
        if context is not None and self.context_channels:
            dense = context.dense() if isinstance(context, PositionTables) else context
            x = torch.cat((x, dense.to(x).expand(x.shape[0], -1, -1, -1)), dim=1)
        result: Tensor = self.second(F.relu_(self.norm(self.first(x))))
        return result


def check_context(context: Context, channels: int, x: Tensor) -> None:
    """Refuse a context of other channels or another size than the subnet and its input have.

    Raises:
        ShapeError: the context is missing, or its channels or size differ.
    """
    if not channels:
        return
    batch, _, *size = x.shape
    expected = (channels, *size)
    if context is None:
        raise ShapeError(f"context must be given: this flow was made for {channels} context channels, but got None")
    if isinstance(context, PositionTables):
        came: tuple[int, ...] = (context.channels, *context.size)
    else:
        came = tuple(context.shape)
    if came not in (expected, (1, *expected), (batch, *expected)):
        raise ShapeError(f"context must be (D, H, W) = {expected} or (B, D, H, W), B = {batch}, but got {came}")
