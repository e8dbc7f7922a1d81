"""Digamma, lgamma and antialiased resizing in elementary operations, for formats without them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from semflow.functional import digamma_series, lgamma_series


def resize_antialiased(images: Tensor, size: Sequence[int]) -> Tensor:
    """Resize images (B, C, H, W) as `F.interpolate(..., mode="bilinear", antialias=True)`, by two matrix products."""
    rows, columns = (
        torch.tensor(_triangles(old, new), dtype=images.dtype, device=images.device)
        for old, new in zip(images.shape[2:], size, strict=True)
    )
    return torch.matmul(rows, torch.matmul(images, columns.T))


def _triangles(old: int, new: int) -> list[list[float]]:
    """Compute the weights of old pixels in each new one: triangles as wide as the scale, normalized to sum 1."""
    scale = old / new
    width = max(scale, 1.0)
    matrix = []
    for i in range(new):
        center = (i + 0.5) * scale - 0.5
        weights = [max(0.0, 1 - abs(j - center) / width) for j in range(old)]
        matrix.append([weight / sum(weights) for weight in weights])
    return matrix


class ElementaryFunctions(TorchFunctionMode):
    """Context manager that replaces torch's digamma, lgamma and antialiased interpolation, also while tracing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the replacement of a function, or the function itself."""
        if func in (torch.digamma, Tensor.digamma):
            return digamma_series(*args)
        if func in (torch.lgamma, Tensor.lgamma):
            return lgamma_series(*args)
        if func is F.interpolate and (kwargs or {}).get("antialias"):
            return _interpolated(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _interpolated(input: Tensor, size: Any = None, **options: Any) -> Any:
    if size is None or options.get("mode") != "bilinear" or options.get("align_corners") or input.dim() != 4:
        return F.interpolate(input, size, **options)
    return resize_antialiased(input, [size, size] if isinstance(size, int) else list(size))
