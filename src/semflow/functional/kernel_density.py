"""Kernel density estimates around stored vectors, with bounded memory."""

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from semflow.errors import ConfigError, ShapeError

from .gaussian import Form, normal_log_prob
from .inverse_gamma import narrow, wide

MOST_ROWS = 1024  # vectors of one image at a time: more do not make the matrix product faster
BYTES = 40  # of the temporaries for one pair of vectors: squares in float64, then float32, and those of logsumexp


def kernel_log_prob(
    z: Tensor,
    memory: Tensor,
    beta: Tensor,
    alpha: Tensor | None = None,
    form: Form = "exact",
    *,
    exclude: Tensor | None = None,
    memory_ids: Tensor | None = None,
    chunk_bytes: int = 2**26,
) -> Tensor:
    """Compute log 1/M sum_m p(z | z_m), where p(z | z_m) is a normal around a stored vector z_m, (B, n) in nats.

    Squared distances are matrix products in float64 around the mean of the memory, since in float32 they cancel near
    stored vectors. Each of the B groups is computed on its own, so a result does not depend on the others. Gradients
    are computed from the vectors again, within the same limit of memory.

    Args:
        z: Vectors (B, n, C).
        memory: Stored vectors (M, C).
        beta: Variance (B, n) or (), or the scale of its inverse-gamma distribution.
        alpha: Shape of the inverse-gamma distribution, like `beta`, or None if `beta` is the variance itself.
        form: How an inverse-gamma variance enters, `exact`, `marginal` or `mode`; see `normal_log_prob`.
        exclude: Integers that broadcast to (B, n): stored vectors with this id are left out of the mean.
        memory_ids: Integers (M,) that `exclude` refers to; row numbers by default.
        chunk_bytes: Approximate limit of temporary memory.

    Example:
        >>> z, memory = torch.zeros(1, 1, 2), torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> round(kernel_log_prob(z, memory, torch.tensor(1.0)).item(), 4)  # log (1 + exp(-25 / 2)) / (2 * 2 pi)
        -2.531
    """
    batch, rows = z.shape[:2]
    _check(z, memory, form)
    if memory_ids is None and exclude is not None:
        memory_ids = torch.arange(len(memory), device=memory.device)
    beta, alpha, exclude = beta.expand(batch, rows), _expand(alpha, batch, rows), _expand(exclude, batch, rows)
    # The number of images of a traced graph is not known, so all are computed at once.
    groups = [slice(None)] if torch.compiler.is_compiling() or batch == 0 else [slice(b, b + 1) for b in range(batch)]
    tracks = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (z, memory, beta, alpha))
    center = wide(memory.detach()).mean(0)
    compute = partial(
        _log_mean, memory=memory, center=center, memory_ids=memory_ids, form=form, chunk_bytes=chunk_bytes
    )
    found: list[Tensor] = []
    for group in groups:
        for first in range(0, max(rows, 1), MOST_ROWS):
            here = (group, slice(first, first + MOST_ROWS))
            own = (z[here], beta[here], None if alpha is None else alpha[here])
            left_out = None if exclude is None else exclude[here]
            if tracks:
                found.append(checkpoint(compute, *own, left_out, use_reentrant=False, preserve_rng_state=False))
            else:
                found.append(compute(*own, left_out))
    return torch.cat(found, 1).view(batch, rows)


def likeliest_bandwidth(
    memory: Tensor, memory_ids: Tensor, rows: Tensor, shortest: float, *, chunk_bytes: int = 2**26
) -> float:
    """Return the bandwidth h that maximizes the leave-one-out likelihood of a kernel density with variance h^2.

    At a maximum, C h^2 is the mean over the rows of a weighted mean of their squared distances, with larger weights for
    smaller ones, so h^2 lies between the means of the smallest and of all squared distances over C. Between these
    bounds, a grid of log h is refined around its best value.

    Args:
        memory: Stored vectors (M, C).
        memory_ids: Integers (M,): vectors with the same id do not count as neighbors of each other.
        rows: Rows of the memory (n,) at which the likelihood is taken; each must have a neighbor.
        shortest: Smallest bandwidth.
        chunk_bytes: Approximate limit of temporary memory.

    Example:
        >>> memory = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
        >>> h = likeliest_bandwidth(memory, torch.arange(4), torch.arange(4), 1e-3)
        >>> round(h, 2)  # each vector has one neighbor at distance 1
        1.0
    """
    channels, center = memory.shape[1], wide(memory).mean(0)
    columns = max(1, chunk_bytes // (BYTES * len(rows) + 32 * channels))

    def squares() -> Iterator[tuple[Tensor, Tensor]]:
        """Yield squared distances (n, columns), infinite where they do not count, and where they count."""
        for vectors, ids in zip(memory.split(columns), memory_ids.split(columns), strict=True):
            kept = memory_ids[rows][:, None] != ids
            yield _squares(memory[rows], vectors, center).masked_fill_(~kept, torch.inf), kept

    def likelihood(log_h: Tensor) -> Tensor:
        factors = (-0.5 * torch.exp(-2 * log_h)).tolist()
        parts = [torch.stack([wide((q * factor).logsumexp(1)) for factor in factors]) for q, _ in squares()]
        each = torch.stack(parts).logsumexp(0).mean(1)
        return each - channels * log_h.to(each)

    found = [(q.amin(1), wide(q.where(kept, 0.0)).sum(1), kept.sum(1)) for q, kept in squares()]
    smallest, sums, counts = (torch.stack(x) for x in zip(*found, strict=True))
    bounds = (smallest.amin(0), sums.sum(0) / counts.sum(0))
    low, high = (max(math.log(shortest), 0.5 * math.log(max(wide(x).mean().item() / channels, 1e-300))) for x in bounds)
    for _ in range(4):
        grid = torch.linspace(low, high, 7, dtype=torch.float64)
        best = int(likelihood(grid).argmax())
        low, high = grid[max(best - 1, 0)].item(), grid[min(best + 1, 6)].item()
    return math.exp(grid[best].item())


def _check(z: Tensor, memory: Tensor, form: str) -> None:
    if form not in ("exact", "marginal", "mode"):
        raise ConfigError(f"form must be exact, marginal or mode around stored vectors, but got {form!r}")
    if memory.dim() != 2 or memory.shape[0] == 0:
        raise ShapeError(f"memory must be (M, C) with at least one vector, but got {tuple(memory.shape)}")
    if z.dim() != 3 or z.shape[2] != memory.shape[1]:
        raise ShapeError(f"z must be (B, n, {memory.shape[1]}), but got {tuple(z.shape)}")


def _expand(x: Tensor | None, *size: int) -> Tensor | None:
    return None if x is None else x.expand(*size)


def _log_mean(
    z: Tensor,
    beta: Tensor,
    alpha: Tensor | None,
    exclude: Tensor | None,
    *,
    memory: Tensor,
    center: Tensor,
    memory_ids: Tensor | None,
    form: Form,
    chunk_bytes: int,
) -> Tensor:
    """Compute the log of the mean of p(z | z_m), (B, n)."""
    b, rows, channels = wide(beta), z.shape[1], z.shape[2]
    scale = None
    if alpha is None:
        peak, weight = -0.5 * channels * torch.log(2 * math.pi * b), 0.5 / b
    else:
        a = wide(alpha)
        peak = normal_log_prob(torch.zeros_like(wide(z)), a[..., None], b[..., None], 0.0, form, dim=2)
        weight = {"exact": a / (2 * b), "mode": (a + 1) / (2 * b), "marginal": a + channels / 2}[form]
        scale = 2 * b if form == "marginal" else None
    columns = max(1, chunk_bytes // (BYTES * max(rows, 1) + 32 * channels))
    sums, counts = [], []
    for first in range(0, len(memory), columns):
        q = _squares(z, memory[first : first + columns], center)
        if scale is not None:
            q = torch.log1p(q / scale[..., None].to(q))
        terms = q * -weight[..., None].to(q)
        if exclude is not None and memory_ids is not None:
            kept = memory_ids[first : first + columns] != exclude[..., None]
            # Finite, so that a chunk without any other vector has no gradient instead of NaN.
            terms = terms.masked_fill(~kept, torch.finfo(terms.dtype).min)
            counts.append(kept.sum(-1))
        sums.append(wide(terms.logsumexp(-1)))
    total = torch.stack(sums).logsumexp(0)
    count = wide(torch.stack(counts).sum(0)) if counts else torch.full_like(total, len(memory))
    return narrow(peak + total - torch.log(count), z, memory)


def _squares(z: Tensor, memory: Tensor, center: Tensor) -> Tensor:
    """Compute squared distances (..., n, M) as one product in float64, rounded to float32 or wider."""
    x, m = wide(z) - center, wide(memory) - center
    x_norm, m_norm = (v.square().sum(-1, keepdim=True) for v in (x, m))
    left = torch.cat([-2 * x, x_norm, torch.ones_like(x_norm)], -1)
    right = torch.cat([m, torch.ones_like(m_norm), m_norm], -1)
    return narrow(torch.matmul(left, right.T), z, memory).clamp(min=0.0)
