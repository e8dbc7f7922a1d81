"""Gaussian blur of maps."""

import torch
import torch.nn.functional as F
from torch import Tensor

from semflow._devices import is_traced
from semflow.errors import ShapeError


def gaussian_kernel(sigma: float) -> Tensor:
    """Return weights proportional to exp(-i^2 / (2 sigma^2)) for |i| <= int(4 sigma + 0.5), with sum 1.

    Example:
        >>> len(gaussian_kernel(4.0)), gaussian_kernel(0.5).tolist()
        (33, [0.000..., 0.106..., 0.786..., 0.106..., 0.000...])
    """
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma).square())
    return (weights / weights.sum()).float()


def gaussian_blur(maps: Tensor, kernel: Tensor) -> Tensor:
    """Convolve maps (B, H, W) with a kernel (2r + 1,) in both directions; the maps are reflected at their borders.

    Example:
        >>> gaussian_blur(torch.eye(5)[None], torch.tensor([0.25, 0.5, 0.25]))[0, 2]
        tensor([0.1250, 0.2500, 0.3750, 0.2500, 0.1250])
    """
    radius, (height, width) = len(kernel) // 2, maps.shape[1:]
    if min(height, width) <= radius:
        raise ShapeError(f"maps must have more than {radius} rows and columns to blur, but got {(height, width)}")
    kernel = kernel.to(maps.dtype)
    padded = F.pad(maps[:, None], (radius,) * 4, mode="reflect")
    if maps.device.type == "cpu" and not is_traced():
        return _along(_along(padded, kernel, 2), kernel, 3)[:, 0]
    return F.conv2d(F.conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None, :])[:, 0]


def _along(x: Tensor, kernel: Tensor, dim: int) -> Tensor:
    """Convolve in one direction by a sum of shifted maps, which CPUs compute ten times as fast as a convolution."""
    first, *others = kernel.tolist()
    size = x.shape[dim] - len(others)
    total: Tensor = x.narrow(dim, 0, size) * first
    for shift, weight in enumerate(others, 1):
        total.add_(x.narrow(dim, shift, size), alpha=weight)
    return total
