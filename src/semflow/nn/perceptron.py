"""Deep subnet for flows on vectors."""

from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from semflow._validation import at_least, checked
from semflow.errors import ConfigError

from .subnets import Context, Subnet

__all__ = ["PerceptronSubnet"]


class PerceptronSubnet(Subnet):
    """Multilayer perceptron with ReLU at every location, DifferNet's subnet; it takes no context.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        context_channels: Must be 0; present because subnet factories are called with it.
        hidden: Units of each hidden layer.
        layers: Number of hidden layers.

    Example:
        >>> import torch
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
        parts: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            parts += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*parts[:-1])

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        return cast(Tensor, self.layers(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
