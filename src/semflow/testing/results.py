"""Laws of what a flow gives: shapes and dtypes, no side effects, any memory layout, and the way back."""

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor

from .case import Case, Finding, fact, noise

__all__ = ["inverse", "layout", "purity", "shapes"]


@torch.no_grad()
def shapes(case: Case) -> Iterator[Finding]:
    """Shapes and dtypes: z as x, log_det (B, H, W) or (B,) as declared and in float32 at least; all finite."""
    x = case.x
    result = case.flow(x, case.context)
    pair = isinstance(result, tuple) and len(result) == 2 and all(isinstance(part, Tensor) for part in result)
    yield fact("forward must give the tensors (z, log_det)", f"it gives {type(result).__name__}", pair)
    z, log_det = result
    yield _like("z", z, x)
    shape = (len(x), *x.shape[2:]) if case.event == "location" else (len(x),)
    came = f"it is {tuple(log_det.shape)}"
    yield fact(f"log_det must be {shape} for event {case.event!r}", came, log_det.shape == shape)
    fine = log_det.dtype in (torch.float32, torch.float64)
    yield fact("log_det must be float32 or float64", f"it is {log_det.dtype}", fine)
    for name, part in (("z", z), ("log_det", log_det)):
        yield fact(f"{name} must be finite", "it is not", bool(part.isfinite().all()))
    yield _like("inverse(z)", case.flow.inverse(z, case.context), x)


def _like(name: str, came: object, x: Tensor) -> Finding:
    if not isinstance(came, Tensor):
        return fact(f"{name} must be a tensor", f"it is {type(came).__name__}", False)
    holds = came.shape == x.shape and came.dtype == x.dtype
    return fact(
        f"{name} must be {tuple(x.shape)} of {x.dtype}, as x is", f"it is {tuple(came.shape)} of {came.dtype}", holds
    )


@torch.no_grad()
def purity(case: Case) -> Iterator[Finding]:
    """The same input gives the same result, and neither the input nor the state of the flow is changed."""
    flow, x, state = case.flow, case.x.clone(), deepcopy(case.flow.state_dict())
    z, log_det = (part.clone() for part in flow(x, case.context))
    yield fact("forward must leave x as it is", "x was changed", torch.equal(x, case.x))
    given = z.clone()
    flow.inverse(given, case.context)
    yield fact("inverse must leave z as it is", "z was changed", torch.equal(given, z))
    changed = [name for name, value in flow.state_dict().items() if not _same(value, state[name])]
    flow.load_state_dict(state)
    yield fact("forward must leave the flow's state as it is", f"{', '.join(changed)} changed", not changed)
    again = flow(x, case.context)
    yield case.equal("z must be the same when forward is called again", again[0], z)
    yield case.equal("log_det must be the same when forward is called again", again[1], log_det)


def _same(a: object, b: object) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b


@torch.no_grad()
def layout(case: Case) -> Iterator[Finding]:
    """Memory layout makes no difference: contiguous, channels_last, or a view of a larger tensor."""
    z, log_det = case.flow(case.x.contiguous(), case.context)
    x = case.flow.inverse(z.contiguous(), case.context)
    wider = torch.cat((case.x, case.x), dim=3)[..., : case.x.shape[3]]
    for name, same in (("channels_last", _channels_last(case.x)), ("a view", wider)):
        other_z, other_log_det = case.flow(same, case.context)
        yield case.equal(f"z must be the same where x is {name}", other_z, z)
        yield case.equal(f"log_det must be the same where x is {name}", other_log_det, log_det)
    other_x = case.flow.inverse(_channels_last(z), case.context)
    yield case.equal("inverse(z) must be the same where z is channels_last", other_x, x)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def inverse(case: Case) -> Iterator[Finding]:
    """inverse(forward(x)) is x and forward(inverse(z)) is z, in the dtype of x and in float64."""
    for at in (case, case.to(torch.float64)):
        z, _ = at.flow(at.x, at.context)
        yield at.equal("inverse(forward(x)) must equal x", at.flow.inverse(z, at.context), at.x)
        # Another z than a forward gave, near enough to be one.
        z = z.roll(1, 0) + 0.1 * z.std() * noise(z, at.generator())
        came, _ = at.flow(at.flow.inverse(z, at.context), at.context)
        yield at.equal("forward(inverse(z)) must equal z", came, z)
