"""Laws of derivatives: the log-det is the Jacobian's, and gradients are those of finite differences."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .case import Case, Finding, fact, noise

__all__ = ["gradients", "log_det"]


def log_det(case: Case) -> Iterator[Finding]:
    """log_det is log |det dz/dx|, from autograd's Jacobian in float64: at each location, or of the whole sample."""
    at = case.to(torch.float64)
    x = at.x.requires_grad_()
    z, came = at.flow(x, at.context)
    rows = []
    for row in _units(z, at).unbind(1):  # units do not mix (locality, batch): one backward pass serves them all
        (gradient,) = torch.autograd.grad(row.sum(), x, retain_graph=True)
        rows.append(_units(gradient, at))
    right = torch.linalg.slogdet(torch.stack(rows, dim=1)).logabsdet
    yield at.equal("log_det must equal slogdet of autograd's Jacobian dz/dx", came.flatten(), right)


def _units(x: Tensor, case: Case) -> Tensor:
    """What a log-det is taken over, one a row: (B H W, C) or (B, C H W)."""
    return x.permute(0, 2, 3, 1).flatten(0, 2) if case.event == "location" else x.flatten(1)


def gradients(case: Case) -> Iterator[Finding]:
    """Gradients are finite, reach every parameter that asks for one, and are those of finite differences."""
    at, generator = case.to(torch.float64), case.generator()
    flow, x = at.flow, at.x.clone().requires_grad_()
    named = [("x", x), *((name, p) for name, p in flow.named_parameters() if p.requires_grad)]
    results = flow(x, at.context)
    weights = [noise(part, generator) for part in results]

    def loss() -> Tensor:
        return torch.stack([(part * w).sum() for part, w in zip(flow(x, at.context), weights, strict=True)]).sum()

    def gradient() -> list[Tensor]:
        given = torch.autograd.grad(loss(), [p for _, p in named], allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, (_, p) in zip(given, named, strict=True)]

    found = gradient()
    reached = [bool((g != 0).any()) for g in found]
    for _ in range(8):  # a small subnet may rest at one input, all of its units off; not at every input
        if not all(reached):
            with torch.no_grad():
                x.copy_(at.x.roll(1, 0) + 3 * noise(x, generator))
            reached = [before or bool((g != 0).any()) for before, g in zip(reached, gradient(), strict=True)]
    for (name, _), g, is_reached in zip(named, found, reached, strict=True):
        lacking = case.context is None and any(word in name for word in ("context", "cond"))
        zero = "it is; check_flow was given no context" if lacking else "it is"
        yield fact(f"the gradient of {name} must not be zero", zero, is_reached)
        yield fact(f"the gradient of {name} must be finite", "it is not", bool(g.isfinite().all()))

    exact = all(part.dtype == torch.float64 for part in results)
    # A log_det that is float32 by design is noise below a larger step.
    step, allowed = (1e-6, 1e-3) if exact else (1e-3, 1e-1)
    directions, values = [noise(g, generator) for g in found], []
    with torch.no_grad():
        x.copy_(at.x)
        for factor in (1, -2):  # forward by a step, back by two
            for (_, p), direction in zip(named, directions, strict=True):
                p.add_(direction, alpha=factor * step)
            values.append(loss())
    right = (values[0] - values[1]) / (2 * step)
    came = torch.stack([(g * d).sum() for g, d in zip(found, directions, strict=True)]).sum()
    length = torch.stack([g.square().sum() for g in found]).sum().sqrt()
    off = ((came - right).abs() / length).item()
    expected = f"the derivative along a random direction must equal finite differences to {allowed:.1g}"
    yield Finding(expected, f"it deviates by {off:.2g} of the gradient's length", off, allowed)
