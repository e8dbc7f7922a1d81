"""Conversions between maps (B, C, H, W) and locations (B H W, C), and masks on the grids of feature maps."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from semflow.errors import ConfigError, ShapeError


def to_locations(x: Tensor) -> Tensor:
    """Reshape (B, C, H, W) to (B H W, C) in row-major order; a view if `x` is channels_last.

    Example:
        >>> to_locations(torch.zeros(2, 5, 3, 4)).shape
        torch.Size([24, 5])
    """
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def from_locations(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Reshape (B H W, C) to (B, C, H, W) for `size` (H, W), a channels_last view; the inverse of `to_locations`.

    Example:
        >>> x = torch.randn(2, 5, 3, 4)
        >>> torch.equal(from_locations(to_locations(x), (3, 4)), x)
        True
    """
    height, width = size
    if x.dim() != 2 or x.shape[0] % (height * width):
        raise ShapeError(f"x must be (B * {height} * {width}, C) for size {size}, but got {tuple(x.shape)}")
    return x.reshape(-1, height, width, x.shape[1]).permute(0, 3, 1, 2)


def take_locations(x: Tensor, index: Tensor) -> Tensor:
    """Select n locations of a batch as one map of height 1 with shape (1, C, 1, n).

    Modules that treat every location independently give the same results for such a map as for the whole batch.

    Args:
        x: Map of shape (B, C, H, W), or (B, H, W), which gives (1, 1, n).
        index: Integers of shape (n,); location (b, row, column) has index (b H + row) W + column.

    Example:
        >>> x = torch.arange(12.0).view(1, 2, 2, 3)
        >>> take_locations(x, torch.tensor([5, 0]))[0, :, 0].tolist()
        [[5.0, 0.0], [11.0, 6.0]]
    """
    if x.dim() == 3:
        return x.reshape(-1)[index].view(1, 1, -1)
    return to_locations(x)[index].T[None, :, None]


def mask_to_grid(mask: Tensor, size: tuple[int, int], resize: Literal["nearest", "max"] = "nearest") -> Tensor:
    """Resize a pixel mask to the size of feature maps, as booleans (B, H_k, W_k).

    Args:
        mask: Mask of shape (B, H, W); numbers count as true if they are positive.
        size: (H_k, W_k) of the feature map.
        resize: `nearest` reads one pixel per cell (SANFlow, section 3.5); `max` marks a cell if any of its pixels is
            marked, so that it never loses a thin scar as `nearest` can.

    Example:
        >>> mask = torch.zeros(1, 8, 8, dtype=torch.bool)
        >>> mask[0, 1, 1] = True
        >>> mask_to_grid(mask, (2, 2)).any().item(), mask_to_grid(mask, (2, 2), "max")[0, 0, 0].item()
        (False, True)
    """
    if mask.dim() != 3:
        raise ShapeError(f"mask must be (B, H, W), but got {tuple(mask.shape)}")
    marked = mask > 0
    if resize == "nearest":
        # Integers, because the float scale of F.interpolate can select the pixel before (26 rows to 22: 12, not 13).
        rows = torch.arange(size[0], device=mask.device) * mask.shape[1] // size[0]
        columns = torch.arange(size[1], device=mask.device) * mask.shape[2] // size[1]
        return marked[:, rows[:, None], columns]
    if resize == "max":
        return F.adaptive_max_pool2d(marked.to(torch.float32), size) > 0
    raise ConfigError(f"resize must be nearest or max, but got {resize!r}")


def border(mask: Tensor, width: int = 1) -> Tensor:
    """Return the locations outside a boolean mask (B, H, W) that are within `width` rows and columns of it.

    Example:
        >>> mask = torch.zeros(1, 4, 4, dtype=torch.bool)
        >>> mask[0, 0, 0] = True
        >>> border(mask).int()[0].tolist()
        [[0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    """
    near = F.max_pool2d(mask.to(torch.float32)[:, None], 2 * width + 1, stride=1, padding=width)[:, 0] > 0
    return near & ~mask
