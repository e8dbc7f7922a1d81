"""Regions of interest on the grids of feature maps."""

import torch
import torch.nn.functional as F
from torch import Tensor

GRAY = 128 / 255


def hide(colors: Tensor, inside: Tensor) -> Tensor:
    """Replace the colors (..., 3, H, W) of pixels outside a region (..., H, W) by mid-gray.

    Example:
        >>> hide(torch.ones(3, 1, 2), torch.tensor([[True, False]]))[0].round(decimals=1).tolist()
        [[1.0, 0.5]]
    """
    return torch.where(inside.unsqueeze(-3), colors, GRAY)


def covered(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return which cells of a grid of `size` hold a marked pixel of masks (B, H, W), as booleans (B, h, w).

    Unlike `mask_to_grid`, this can be exported for all sizes.

    Example:
        >>> mask = torch.zeros(1, 6, 6, dtype=torch.bool)
        >>> mask[0, 1, 1] = True
        >>> covered(mask, (2, 2)).int()[0].tolist()
        [[1, 0], [0, 0]]
    """
    rows, columns = (_cells(cells, pixels, mask.device) for cells, pixels in zip(size, mask.shape[1:], strict=True))
    return rows @ mask.to(torch.float32) @ columns.T > 0.5


def _cells(cells: int, pixels: int, device: torch.device) -> Tensor:
    """Return which pixels each cell of an axis overlaps, as zeros and ones (cells, pixels)."""
    cell, pixel = torch.arange(cells, device=device)[:, None], torch.arange(pixels, device=device)
    return ((pixel + 1) * cells > cell * pixels).logical_and(pixel * cells < (cell + 1) * pixels).to(torch.float32)


def grown(values: Tensor, inside: Tensor, steps: int) -> Tensor:
    """Replace the values of maps (B, H, W) outside a region by means of their neighbors, step by step from its border.

    What lay there before has no effect; values more than `steps` from the region become 0.

    Example:
        >>> grown(torch.tensor([[[1.0, 9.0, 9.0]]]), torch.tensor([[[True, False, False]]]), 1)
        tensor([[[1., 1., 0.]]])
    """
    known = inside[:, None]
    values = torch.where(known, values[:, None], 0.0)
    for _ in range(steps):
        count = F.avg_pool2d(known.to(values.dtype), 3, 1, 1)
        total = F.avg_pool2d(values, 3, 1, 1)
        values = torch.where(known, values, torch.where(count > 0, total / count.clamp(min=0.1), 0.0))
        known = count > 0
    return values[:, 0]
