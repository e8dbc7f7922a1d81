"""Digamma, lgamma and resizing in elementary operations, for formats without them or with slow ones."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from semflow.functional import digamma_series, lgamma_series


def resized(images: Tensor, size: Sequence[int], weights: Callable[[int, int], list[list[float]]]) -> Tensor:
    """Resize images (B, C, H, W) by two matrix products, with the weights of old pixels in each new one."""
    rows, columns = (
        torch.tensor(weights(old, new), dtype=images.dtype, device=images.device)
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


def _hats(old: int, new: int, corners: bool) -> list[list[float]]:
    """Compute the weights of bilinear interpolation, with aligned corners or not."""
    matrix = []
    for i in range(new):
        place = i * (old - 1) / max(new - 1, 1) if corners else (i + 0.5) * old / new - 0.5
        place = min(max(place, 0.0), old - 1)
        matrix.append([max(0.0, 1 - abs(j - place)) for j in range(old)])
    return matrix


class ElementaryFunctions(TorchFunctionMode):
    """Context manager that replaces torch's digamma, lgamma and some interpolation, also while tracing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the replacement of a function, or the function itself."""
        if func in (torch.digamma, Tensor.digamma):
            return digamma_series(*args)
        if func in (torch.lgamma, Tensor.lgamma):
            return lgamma_series(*args)
        if func is F.interpolate:
            return _interpolated(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _interpolated(input: Tensor, size: Any = None, **options: Any) -> Any:
    if size is None or options.get("mode") != "bilinear" or input.dim() != 4:
        return F.interpolate(input, size, **options)
    sides = [size, size] if isinstance(size, int) else list(size)
    corners = bool(options.get("align_corners"))
    if options.get("antialias") and not corners:
        return resized(input, sides, _triangles)
    if not options.get("antialias") and input.shape[1] == 1:  # runtimes take longer for it than for a backbone's layer
        return resized(input, sides, partial(_hats, corners=corners))
    return F.interpolate(input, size, **options)
