"""Laws of how a flow is used: under autocast, saved and loaded, compiled."""

import io
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor

from semflow.flows import Flow
from semflow.nn import Context

from .case import Case, Finding, fact, scramble

__all__ = ["autocast", "compiled", "state_dict"]


@torch.no_grad()
def autocast(case: Case) -> Iterator[Finding]:
    """Under bfloat16 autocast log_det keeps its shape and is float32 all the same."""
    at = case.to(torch.float32)
    z, log_det = at.flow(at.x, at.context)
    with torch.autocast(at.x.device.type, dtype=torch.bfloat16):
        half_z, half_log_det = at.flow(at.x, at.context)
    fine = half_log_det.dtype in (torch.float32, torch.float64)
    yield fact("log_det must be float32 under bfloat16 autocast", f"it is {half_log_det.dtype}", fine)
    fine = half_log_det.shape == log_det.shape and half_z.shape == z.shape
    yield fact("shapes must be the same under autocast", "they are not", fine)
    fine = bool(half_z.isfinite().all() and half_log_det.isfinite().all())
    yield fact("z and log_det must be finite under bfloat16 autocast", "they are not", fine)


@torch.no_grad()
def state_dict(case: Case) -> Iterator[Finding]:
    """Saved and loaded into another flow of its kind, the state dict makes that flow the same."""
    file = io.BytesIO()
    torch.save(case.flow.state_dict(), file)
    file.seek(0)
    if case.factory is None:
        other, hint = deepcopy(case.module), " (give factory= where a constant of the constructor is not saved)"
        scramble(other, case.generator())
    else:
        other, hint = case.factory().to(case.x.device, case.x.dtype).train(case.module.training), ""
    other.load_state_dict(torch.load(file, map_location=case.x.device, weights_only=True))
    claim = f"of a flow that loaded the state dict must be the same{hint}"
    z, log_det = case.flow(case.x, case.context)
    other_z, other_log_det = other(case.x, case.context)
    yield case.equal(f"z {claim}", other_z, z)
    yield case.equal(f"log_det {claim}", other_log_det, log_det)
    other_x = cast(Flow, other).inverse(z, case.context)
    yield case.equal(f"inverse(z) {claim}", other_x, case.flow.inverse(z, case.context))


def compiled(case: Case) -> Iterator[Finding]:
    """torch.compile takes forward, its gradient and inverse as one graph each, and gives what eager gives."""
    if case.compile_backend is None:
        return
    flow, results = case.flow, []
    for wrap in (_as_it_is, _compile):
        x = case.x.clone().requires_grad_()
        z, log_det = wrap(flow, case)(x, case.context)
        (gradient,) = torch.autograd.grad(z.square().sum() + log_det.sum(), x)
        with torch.no_grad():
            results.append((z, log_det, gradient, wrap(flow.inverse, case)(z.detach(), case.context)))
    for name, right, came in zip(("z", "log_det", "the gradient of x", "inverse(z)"), *results, strict=True):
        yield case.equal(f"{name} of the compiled flow must equal the eager one", came, right)


def _as_it_is(function: Callable[..., Any], case: Case) -> Callable[..., Any]:
    return function


def _compile(function: Callable[..., Any], case: Case) -> Callable[..., Any]:
    def call(x: Tensor, context: Context) -> Any:
        return function(x, context)

    # A code object of its own: torch.compile counts recompilations by code object, over all flows ever checked.
    call.__code__ = call.__code__.replace()
    return torch.compile(call, fullgraph=True, dynamic=False, backend=cast(str, case.compile_backend))
