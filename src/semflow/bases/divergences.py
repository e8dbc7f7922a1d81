"""KL divergences between `SemanticNormal` and normals, registered with `torch.distributions.kl_divergence`.

For p with mean m_p and covariance S_p, and a normal q,

    KL(p || q) = (C log 2 pi + log det S_q + tr S_q^-1 S_p + (m_p - m_q)^T S_q^-1 (m_p - m_q)) / 2 - H(p)

computed in float64. One distribution of each registered pair is a `SemanticNormal`.
"""

import math
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, register_kl

from semflow.errors import ConfigError, ShapeError
from semflow.functional.inverse_gamma import narrow, wide

from .distributions import SemanticNormal

Supported: TypeAlias = "SemanticNormal | MultivariateNormal | Independent[Any]"


class NoClosedFormError(ConfigError, NotImplementedError):
    """No closed form; a NotImplementedError too, which callers of `kl_divergence` catch to estimate by samples."""


class Moments(NamedTuple):
    """Mean, entropy, and the covariance as its diagonal (..., C) or its Cholesky factor (..., C, C)."""

    mean: Tensor
    entropy: Tensor
    variance: Tensor | None
    triangle: Tensor | None


def divergence(p: Supported, q: Supported) -> Tensor:
    """Compute KL(p || q) in nats, in the broadcast batch shape; infinite if the variance of p is.

    Both are `SemanticNormal`, `MultivariateNormal` or `Independent(Normal(...), 1)`, and q is not a Student-t.
    """
    if p.event_shape != q.event_shape:
        shapes = tuple(p.event_shape), tuple(q.event_shape)
        raise ShapeError(f"p and q must have the same event shape, but got {shapes[0]}, {shapes[1]}")
    if isinstance(q, SemanticNormal) and q._is_student:
        raise NoClosedFormError("q must be a normal (form mode), but got a Student-t; estimate it by samples")
    a, b = _moments("p", p), _moments("q", q)
    off = a.mean - b.mean
    if b.triangle is None:
        variance = cast(Tensor, b.variance)
        own = a.triangle.square().sum(-1) if a.triangle is not None else cast(Tensor, a.variance)
        log_det, inner = variance.log().sum(-1), ((own + off.square()) / variance).sum(-1)
    else:
        log_det = 2 * _diagonal(b.triangle).log().sum(-1)
        inner = _solve(b.triangle, off[..., None]).square().sum((-2, -1))
        if a.triangle is not None:
            inner = inner + _solve(b.triangle, a.triangle).square().sum((-2, -1))
        else:  # sum the rows first, because an infinite variance times a zero above the diagonal is NaN
            eye = torch.eye(off.shape[-1], dtype=off.dtype, device=off.device)
            inner = inner + (_solve(b.triangle, eye).square().sum(-2) * cast(Tensor, a.variance)).sum(-1)
    return narrow(_half(p) + 0.5 * (log_det + inner) - a.entropy, p.mean, q.mean)


def _moments(name: str, d: Supported) -> Moments:
    if isinstance(d, SemanticNormal):
        return Moments(wide(d.loc), d._entropy(), d._spread()[..., None].expand(d.loc.shape), None)
    if isinstance(d, MultivariateNormal):
        triangle = wide(d.scale_tril)
        entropy = _half(d) + d.event_shape[0] / 2 + _diagonal(triangle).log().sum(-1)
        return Moments(wide(d.loc), entropy, None, triangle)
    normal = d.base_dist
    if not isinstance(normal, Normal) or d.reinterpreted_batch_ndims != 1:
        raise NoClosedFormError(f"{name} must be Independent(Normal(...), 1), but got {d}; estimate it by samples")
    scale = wide(normal.scale)
    entropy = _half(d) + d.event_shape[0] / 2 + scale.log().sum(-1)
    return Moments(wide(normal.loc), entropy, scale.square(), None)


def _half(d: Supported) -> float:
    """C/2 log 2 pi."""
    return 0.5 * float(d.event_shape[0]) * math.log(2 * math.pi)


def _diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)


def _solve(triangle: Tensor, right: Tensor) -> Tensor:
    solved: Tensor = torch.linalg.solve_triangular(triangle, right, upper=False)
    return solved


register_kl(SemanticNormal, SemanticNormal)(divergence)
for _other in (MultivariateNormal, Independent):
    register_kl(SemanticNormal, _other)(divergence)
    register_kl(_other, SemanticNormal)(divergence)
