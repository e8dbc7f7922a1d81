"""Separable two-dimensional position codes, stored as one table per axis.

code(row, column) = [column part, row part], so a linear layer applied to it is the sum of a table of W rows and a table
of H rows. A flow never builds the (D, H, W) code, let alone one per image.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from semflow._validation import at_least, checked
from semflow.errors import ConfigError, ShapeError
from semflow.functional.inverse_gamma import wide


class PositionTables(NamedTuple):
    """Separable position code, the `context` of a conditional flow.

    Args:
        column: Codes of the columns, (W, D_column).
        row: Codes of the rows, (H, D_row).

    Example:
        >>> PositionTables(torch.zeros(5, 6), torch.zeros(4, 6)).dense().shape
        torch.Size([12, 4, 5])
    """

    column: Tensor
    row: Tensor

    @property
    def channels(self) -> int:
        """Number of channels D = D_column + D_row."""
        return self.column.shape[1] + self.row.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Size (H, W) of the map."""
        return self.row.shape[0], self.column.shape[0]

    def dense(self) -> Tensor:
        """Return the code as a map (D, H, W), the column part first."""
        height, width = self.size
        column = self.column.T[:, None, :].expand(-1, height, -1)
        row = self.row.T[:, :, None].expand(-1, -1, width)
        return torch.cat((column, row))

    def take(self, index: Tensor) -> Tensor:
        """Return the codes (D, 1, n) of n locations, see `semflow.functional.take_locations`."""
        height, width = self.size
        return torch.cat((self.column[index % width], self.row[index // width % height]), dim=1).T[:, None]


class PositionCode(nn.Module):
    """Base class of position codes; `code(height, width)` returns `PositionTables` with `code.channels` channels.

    A subclass defines `axis`, or `forward` itself.

    Args:
        channels: D, a positive multiple of 4.

    Example:
        >>> SinusoidalPosition2d(8)(height=3, width=5).dense().shape
        torch.Size([8, 3, 5])
    """

    steps: Tensor

    @checked
    def __init__(self, channels: int = 512) -> None:
        super().__init__()
        if channels < 4 or channels % 4:
            raise ConfigError(f"channels must be a positive multiple of 4, but got {channels}")
        self.channels = channels
        # Indices of the frequencies. As integers they survive casts of the module, so that the frequencies are computed
        # in the widest dtype of the device.
        self.register_buffer("steps", torch.arange(channels // 4), persistent=False)

    def axis(self, length: int) -> Tensor:
        """Return the table (length, D/2) of an axis."""
        raise TypeError(f"{type(self).__name__} must define axis(length), but got a class without it")

    def forward(self, height: int, width: int) -> PositionTables:
        """Return the tables for a feature map of that size."""
        return PositionTables(self.axis(width), self.axis(height))

    def extra_repr(self) -> str:
        """Return the arguments that `repr` shows."""
        return f"{self.channels}"


class SinusoidalPosition2d(PositionCode):
    """Sinusoidal code of integer positions, half of the channels for the column and half for the row.

    code(x)[2k] = sin(x w_k), code(x)[2k + 1] = cos(x w_k), w_k = 10000^(-2k / (D/2))

    Args:
        channels: D, a multiple of 4; 512 in SANFlow, 128 in CFLOW-AD.

    Example:
        >>> SinusoidalPosition2d(512)(32, 48).dense().shape
        torch.Size([512, 32, 48])
    """

    def axis(self, length: int) -> Tensor:
        """Return the table (length, D/2) of an axis."""
        # In float64, because the product of positions and frequencies loses digits in float32.
        frequencies = torch.exp(-2 * wide(self.steps) * (math.log(1e4) / (self.channels // 2)))
        return _sines(torch.arange(length, device=self.steps.device), frequencies)


class FourierPosition2d(PositionCode):
    """Fourier features of the relative position u in (0, 1): sin and cos of 2 pi f u, f geometric from 1/2 up.

    Unlike `SinusoidalPosition2d`, a place has the same code at every scale and image size.

    Args:
        channels: D, a multiple of 4.
        highest: Highest frequency in periods per image side.

    Example:
        >>> FourierPosition2d(64)(8, 8).row.shape
        torch.Size([8, 32])
    """

    @checked
    def __init__(self, channels: int = 64, highest: float = 32.0) -> None:
        super().__init__(channels)
        if not highest >= 0.5:
            raise ConfigError(f"highest must be at least 0.5 periods per image side, but got {highest}")
        self.highest = highest

    def axis(self, length: int) -> Tensor:
        """Return the table (length, D/2) of an axis, at the centers of `length` equal cells."""
        octaves = math.log2(self.highest / 0.5) / max(1, len(self.steps) - 1)
        frequencies = math.pi * torch.exp2(wide(self.steps) * octaves)
        centers = (wide(torch.arange(length, device=self.steps.device)) + 0.5) / length
        return _sines(centers, frequencies)


class LearnedPosition2d(PositionCode):
    """Learned code with one vector per row and one per column.

    Args:
        channels: D, a multiple of 4.
        height: Height of the largest feature map; smaller maps use the first rows.
        width: Width of the largest feature map.

    Example:
        >>> LearnedPosition2d(16, height=8, width=8)(4, 8).size
        (4, 8)
    """

    @checked
    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__(channels)
        at_least(1, height=height, width=width)
        self.column = nn.Parameter(torch.randn(width, channels // 2) / math.sqrt(2))
        self.row = nn.Parameter(torch.randn(height, channels // 2) / math.sqrt(2))

    def forward(self, height: int, width: int) -> PositionTables:
        """Return the first rows of the tables; raise ShapeError if the map is larger than the tables."""
        largest = len(self.row), len(self.column)
        if height > largest[0] or width > largest[1]:
            raise ShapeError(f"size must be at most {largest}, but got {(height, width)}")
        return PositionTables(self.column[:width], self.row[:height])


def _sines(positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = positions[:, None].to(frequencies.dtype) * frequencies
    table = torch.stack((torch.sin(angles), torch.cos(angles)), dim=2).flatten(1)
    return table.to(torch.get_default_dtype())
