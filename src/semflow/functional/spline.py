"""Monotone rational-quadratic spline with linear tails."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from semflow.errors import ConfigError, ShapeError


def rational_quadratic_spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    slopes: Tensor,
    bound: float = 3.0,
    minimum: float = 1e-3,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Map numbers by a monotone spline of [-bound, bound], and by the identity outside it (Durkan et al., 2019, RQS).

    Bin k has width w, height h, slope s = h / w and derivatives d at its lower and d' at its upper knot. With
    t = (x - x_k) / w in it,

    - y = y_k + h t (s t + d (1 - t)) / q, where q = s (t^2 + (1 - t)^2) + (d + d') t (1 - t)
    - dy/dx = s^2 (d' t^2 + 2 s t (1 - t) + d (1 - t)^2) / q^2

    Widths and heights are softmax(widths) and softmax(heights) of the interval, derivatives are softplus(slopes), and 1
    at both ends. All are at least `minimum` (of the interval, or 1), as published, and derivatives at most
    1 / `minimum`, which float32 can still invert. Arguments of zeros give the identity, since a constant is added to
    `slopes`. All terms are positive, so nothing cancels, in the inverse either; gradients are finite outside, too.

    Args:
        x: Numbers of any shape, and any size: infinities and NaN are kept.
        widths: Logits of the widths of K bins, (..., K), the shape of `x` and one more axis.
        heights: Logits of the heights, like `widths`.
        slopes: Derivatives at the K - 1 inner knots before softplus, (..., K - 1).
        bound: Half of the interval.
        minimum: Smallest width and height of a bin as a fraction of the interval, and smallest derivative.
        inverse: Compute the inverse.

    Returns:
        y and log dy/dx, or x and log dx/dy of the inverse, in the shape of `x`.

    Example:
        >>> x, rising = torch.tensor([-1e30, -1.0, 0.5, 4.0]), torch.arange(8.0).expand(4, 8)
        >>> y, log_slope = rational_quadratic_spline(x, torch.zeros(4, 8), rising, torch.zeros(4, 7))
        >>> y
        tensor([-1.0000e+30, -2.9591e+00, -2.7581e+00,  4.0000e+00])
    """
    bins = widths.shape[-1]
    expected = tuple((*x.shape, k) for k in (bins, bins, bins - 1))
    shapes = tuple(tuple(part.shape) for part in (widths, heights, slopes))
    if shapes != expected:
        raise ShapeError(f"widths, heights and slopes must be {expected}, one per number and bin, but got {shapes}")
    if not 0 < minimum * bins < 1:
        raise ConfigError(f"minimum must be between 0 and 1 / {bins}, one over the bins, but got {minimum}")
    at_one = math.log(math.expm1(1 - minimum))  # softplus of it is 1 - minimum
    derivatives = F.pad((minimum + F.softplus(slopes + at_one)).clamp(max=1 / minimum), (1, 1), value=1.0)
    from_knots, to_knots = _knots(widths, bound, minimum), _knots(heights, bound, minimum)
    given = to_knots if inverse else from_knots
    clamped = x.clamp(-bound, bound)  # a NaN of a branch that is not taken would be the gradient of both
    below = (clamped[..., None] >= given[..., 1:-1]).sum(-1, keepdim=True)
    both = torch.cat((below, below + 1), dim=-1)
    (x0, x1), (y0, y1), (d0, d1) = (v.gather(-1, both).unbind(-1) for v in (from_knots, to_knots, derivatives))
    width, height = x1 - x0, y1 - y0
    slope = height / width
    if inverse:
        t = _position((clamped - y0) / height, (y1 - clamped) / height, slope, d0, d1)
        rest, found = 1 - t, x0 + width * t
    else:
        t, rest = (clamped - x0) / width, (x1 - clamped) / width
    q = slope * (t * t + rest * rest) + (d0 + d1) * t * rest
    log_slope = 2 * torch.log(slope / q) + torch.log(d1 * t * t + 2 * slope * t * rest + d0 * rest * rest)
    if inverse:
        log_slope = -log_slope
    else:
        found = y0 + height * t * (slope * t + d0 * rest) / q
    inside = x.abs() < bound
    return torch.where(inside, found, x), torch.where(inside, log_slope, 0.0)


def _knots(logits: Tensor, bound: float, minimum: float) -> Tensor:
    """Return the K + 1 ends of K bins; sizes of bins are differences of these, so that they agree after rounding."""
    shares = minimum + (1 - minimum * logits.shape[-1]) * logits.softmax(-1)
    inner = bound * (2 * shares.cumsum(-1)[..., :-1] - 1)
    return F.pad(F.pad(inner, (1, 0), value=-bound), (0, 1), value=bound)


def _position(u: Tensor, rest: Tensor, slope: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    """Solve for t in a bin, given the fractions u below and rest = 1 - u above it in height.

    t is the root of (s - b) t^2 + b t = s u, with b = d - u (d + d' - 2 s). The discriminant is a sum of squares, and
    the form of the root that adds numbers of one sign is taken.
    """
    skew = d0 * rest - d1 * u
    b = skew + 2 * slope * u
    root = torch.sqrt(skew * skew + 4 * slope * slope * u * rest)
    convex = b < 0
    return torch.where(convex, root - b, 2 * slope * u) / torch.where(convex, 2 * (slope - b), b + root)
