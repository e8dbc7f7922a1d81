"""The convolution of subnets: torch's, laid out and computed as CPUs are quickest at it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import at_least, checked
from ..errors import ConfigError

__all__ = ["SameConv2d"]

FEW = 2**14
"""Numbers of a weight for each location from which on its gradient costs less as one product."""


class SameConv2d(nn.Conv2d):
    """A convolution of stride 1 that keeps the map's size; `torch.nn.Conv2d` in all that it gives.

    - The weight lies in channels_last memory, as the maps do, and is not brought into another order at each call.
    - In training on a CPU, a large weight over few locations, (K^2 I O) / (B H W) > 16384, is one matrix product with
      the K^2 neighbours of every location: the gradient of the weight is then one as well.

    Args:
        in_channels, out_channels: I and O.
        kernel: K, odd.

    Shape:
        (B, I, H, W) to (B, O, H, W).

    Example:
        >>> SameConv2d(4, 8, kernel=3)(torch.randn(2, 4, 6, 6)).shape
        torch.Size([2, 8, 6, 6])
    """

    @checked
    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        at_least(1, in_channels=in_channels, out_channels=out_channels, kernel=kernel)
        if kernel % 2 == 0:
            raise ConfigError(f"kernel must be odd, so that the map keeps its size, but got {kernel}")
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, input: Tensor) -> Tensor:
        """(B, I, H, W) to (B, O, H, W)."""
        if self._has_few_locations(input):
            return neighbour_product(input, self.weight, self.bias)
        return super().forward(input)

    def _has_few_locations(self, x: Tensor) -> bool:
        # In inference an image's score is to be the same alone and in a batch, so that the batch has no say there.
        return (
            self.weight.numel() > FEW * x.numel() // self.in_channels > 0
            and torch.is_grad_enabled()
            and self.weight.requires_grad
            and x.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        )


def neighbour_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of x (B, I, H, W) with zeros around it as rows of neighbours (B H W, K^2 I) by (K^2 I, O)."""
    height, width = x.shape[2:]
    kernel = weight.shape[2]
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, *(kernel // 2,) * 4))
    places = [(row, column) for row in range(kernel) for column in range(kernel)]
    rows = torch.cat([padded[:, i : i + height, j : j + width] for i, j in places], dim=3)
    return F.linear(rows, weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)
