"""Two-dimensional position codes as two small tables, since all of them are separable.

code(row, column) = [column part, row part], so a linear layer of it is a table of W rows plus a table of H rows: a flow
never needs the (D, H, W) code, let alone one for each image of a batch.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from semflow._validation import at_least, checked
from semflow.errors import ConfigError, ShapeError
from semflow.functional.inverse_gamma import wide

__all__ = ["FourierPosition2d", "LearnedPosition2d", "PositionCode", "PositionTables", "SinusoidalPosition2d"]


class PositionTables(NamedTuple):
    """A separable position code: what a conditional flow takes as its `context`.

    Args:
        column: (W, D_column), the code of each column.
        row: (H, D_row), the code of each row.

    Example:
        >>> tables = PositionTables(torch.zeros(5, 6), torch.zeros(4, 6))
        >>> tables.channels, tables.dense().shape
        (12, torch.Size([12, 4, 5]))
    """

    column: Tensor
    row: Tensor

    @property
    def channels(self) -> int:
        """D = D_column + D_row."""
        return self.column.shape[1] + self.row.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.row.shape[0], self.column.shape[0]

    def dense(self) -> Tensor:
        """The code as a map, (D, H, W): the column part first."""
        height, width = self.size
        column = self.column.T[:, None, :].expand(-1, height, -1)
        row = self.row.T[:, :, None].expand(-1, -1, width)
        return torch.cat((column, row))

    def take(self, index: Tensor) -> Tensor:
        """The code of some locations, (D, 1, n); they are numbered as in `semflow.functional.take_locations`.

        Example:
            >>> tables = PositionTables(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[10.0], [20.0]]))
            >>> tables.take(torch.tensor([5, 6])).flatten(1).tolist()  # row 1, column 2; and the next image's first
            [[2.0, 0.0], [20.0, 10.0]]
        """
        height, width = self.size
        return torch.cat((self.column[index % width], self.row[index // width % height]), dim=1).T[:, None]


class PositionCode(nn.Module):
    """The interface of a position code: `code(height, width)` gives `PositionTables` of `code.channels` in all.

    Example:
        >>> tables = SinusoidalPosition2d(8)(height=3, width=5)
        >>> tables.dense().shape
        torch.Size([8, 3, 5])
    """

    steps: Tensor

    @checked
    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 4 or channels % 4:
            raise ConfigError(f"channels of a position code must be a positive multiple of 4, but got {channels}")
        self.channels = channels
        # The numbers of the frequencies. Integers: whatever a module is cast to, and on devices without float64, the
        # frequencies are then made in the widest dtype there is.
        self.register_buffer("steps", torch.arange(channels // 4), persistent=False)

    def axis(self, length: int) -> tuple[Tensor, Tensor]:
        """The tables (length, D/2) of a column axis and of a row axis of that length."""
        raise TypeError(f"{type(self).__name__} must define axis(length), which gives the two tables of an axis")

    def forward(self, height: int, width: int) -> PositionTables:
        """The tables of a feature map of that size."""
        return PositionTables(self.axis(width)[0], self.axis(height)[1])

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{self.channels}"


class SinusoidalPosition2d(PositionCode):
    """Sinusoids at integer positions: half of the channels for the column, half for the row.

    code(x)[2k] = sin(x w_k), code(x)[2k + 1] = cos(x w_k), w_k = 10000^(-2k / (D/2))

    Args:
        channels: D, a multiple of 4; 512 in SANFlow, 128 in CFLOW-AD.

    Example:
        >>> SinusoidalPosition2d(512)(32, 48).dense().shape
        torch.Size([512, 32, 48])
    """

    def __init__(self, channels: int = 512) -> None:
        super().__init__(channels)

    def axis(self, length: int) -> tuple[Tensor, Tensor]:
        """One table for both axes, computed in float64: positions times frequencies lose digits otherwise."""
        frequencies = torch.exp(-2 * wide(self.steps) * (math.log(1e4) / (self.channels // 2)))
        return (table := _sines(torch.arange(length, device=self.steps.device), frequencies)), table


class FourierPosition2d(PositionCode):
    """Fourier features of the relative position u in (0, 1): sin and cos of 2 pi f u, f geometric from 1/2 up.

    Unlike the sinusoids on the grid it says the same of the same place at every scale and image size.

    Args:
        channels: D, a multiple of 4.
        highest: the highest frequency, in periods per image side.

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

    def axis(self, length: int) -> tuple[Tensor, Tensor]:
        """One table for both axes, of the centres of `length` equal cells."""
        octaves = math.log2(self.highest / 0.5) / max(1, len(self.steps) - 1)
        frequencies = math.pi * torch.exp2(wide(self.steps) * octaves)
        centres = (wide(torch.arange(length, device=self.steps.device)) + 0.5) / length
        return (table := _sines(centres, frequencies)), table


class LearnedPosition2d(PositionCode):
    """A learned code: one vector for each row and one for each column.

    Args:
        channels: D, a multiple of 4.
        height, width: the largest feature map; smaller ones use the first rows.

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
        """The tables of a feature map of that size.

        Raises:
            ShapeError: the map is larger than the tables.
        """
        if height > self.row.shape[0] or width > self.column.shape[0]:
            raise ShapeError(
                f"size must be at most {(self.row.shape[0], self.column.shape[0])}, the learned tables, "
                f"but got {(height, width)}"
            )
        return PositionTables(self.column[:width], self.row[:height])


def _sines(positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = positions[:, None].to(frequencies.dtype) * frequencies
    table = torch.stack((torch.sin(angles), torch.cos(angles)), dim=2).flatten(1)
    return table.to(torch.get_default_dtype())
