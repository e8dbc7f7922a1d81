"""What some exchange formats lack, in arithmetic that all have: digamma and lgamma, and antialiased resizing."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["ElementaryFunctions", "digamma_series", "lgamma_series", "resize_antialiased"]

STEPS = 8
"""How far the recurrences carry an argument before the series begin: at 8 the first term left out is below 2e-15."""

# B_2k / (2k) and B_2k / (2k (2k - 1)) of the Bernoulli numbers, from k = 7 and k = 6 down to 1.
_DIGAMMA = (1 / 12, -691 / 32760, 1 / 132, -1 / 240, 1 / 252, -1 / 120, 1 / 12)
_LGAMMA = (-691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12)


def digamma_series(x: Tensor) -> Tensor:
    """psi(x) for x > 0 by elementary functions alone.

    psi(x) = log y - 1 / (2 y) - sum_k B_2k / (2k y^2k) - sum_(i < 8) 1 / (x + i) with y = x + 8 (Abramowitz and Stegun,
    6.3.5 and 6.3.18).

    Args:
        x: any shape, positive; the result is right to the rounding of its dtype.

    Example:
        >>> x = torch.tensor([1e-8, 0.5, 60.0], dtype=torch.float64)
        >>> torch.allclose(digamma_series(x), torch.digamma(x), rtol=1e-13)
        True
    """
    poles = 1 / x
    for i in range(1, STEPS):
        poles = poles + 1 / (x + i)
    y = x + STEPS
    return torch.log(y) - 0.5 / y - _horner(_DIGAMMA, y) / y - poles


def lgamma_series(x: Tensor) -> Tensor:
    """log Gamma(x) for x > 0 by elementary functions alone.

    log Gamma(x) = (y - 1/2) log y - y + log(2 pi) / 2 + sum_k B_2k / (2k (2k - 1) y^(2k - 1))
    - log prod_(i < 8) (x + i) with y = x + 8 (Abramowitz and Stegun, 6.1.15 and 6.1.41).

    Args:
        x: any shape, positive, below 1e4 in float32 (the product of eight is formed); right to the rounding of the
            largest of its terms.

    Example:
        >>> x = torch.tensor([1e-8, 0.5, 60.0], dtype=torch.float64)
        >>> torch.allclose(lgamma_series(x), torch.lgamma(x), rtol=1e-13)
        True
    """
    product = x
    for i in range(1, STEPS):
        product = product * (x + i)
    y = x + STEPS
    return (y - 0.5) * torch.log(y) - y + 0.5 * math.log(2 * math.pi) + _horner(_LGAMMA, y) - torch.log(product)


def resize_antialiased(images: Tensor, size: Sequence[int]) -> Tensor:
    """Images (B, C, H, W) to (B, C, h, w) as `F.interpolate(..., mode="bilinear", antialias=True)`: A x B^T.

    The filter is linear and separable, so it is a matrix of constants for the rows and one for the columns.

    Example:
        >>> x = torch.rand(2, 3, 12, 9)
        >>> expected = torch.nn.functional.interpolate(x, (5, 4), mode="bilinear", antialias=True)
        >>> torch.allclose(resize_antialiased(x, (5, 4)), expected, atol=1e-6)
        True
    """
    rows, columns = (
        torch.tensor(_triangles(old, new), dtype=images.dtype, device=images.device)
        for old, new in zip(images.shape[2:], size, strict=True)
    )
    return torch.matmul(rows, torch.matmul(images, columns.T))


def _triangles(old: int, new: int) -> list[list[float]]:
    """The weights of `old` pixels in each of `new`: triangles as wide as the reduction, cut at the border, of sum 1."""
    scale = old / new
    width = max(scale, 1.0)
    matrix = []
    for i in range(new):
        centre = (i + 0.5) * scale - 0.5
        weights = [max(0.0, 1 - abs(j - centre) / width) for j in range(old)]
        matrix.append([weight / sum(weights) for weight in weights])
    return matrix


class ElementaryFunctions(TorchFunctionMode):
    """While it is entered, torch's digamma, lgamma and antialiased interpolation are those above, also when traced.

    Example:
        >>> with ElementaryFunctions():
        ...     program = torch.export.export(_Lgamma(), (torch.ones(2),), strict=False)
        >>> any("lgamma" in str(node.target) for node in program.graph.nodes)
        False
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Pass a call of torch on, or answer it by a series."""
        if func in (torch.digamma, Tensor.digamma):
            return digamma_series(*args)
        if func in (torch.lgamma, Tensor.lgamma):
            return lgamma_series(*args)
        if func is F.interpolate and (kwargs or {}).get("antialias"):
            return _interpolated(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _interpolated(func: Callable[..., Any], input: Tensor, size: Any = None, **options: Any) -> Any:
    bilinear = options.get("mode") == "bilinear" and not options.get("align_corners") and input.dim() == 4
    if not bilinear or size is None:
        return func(input, size, **options)
    return resize_antialiased(input, [size, size] if isinstance(size, int) else list(size))


class _Lgamma(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.lgamma(x)


def _horner(coefficients: tuple[float, ...], y: Tensor) -> Tensor:
    """sum_k c_k / y^(2k - 1), from the last coefficient, c_1, up."""
    inverse = 1 / y
    square = inverse * inverse
    total = torch.full_like(y, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * square + coefficient
    return total * inverse
