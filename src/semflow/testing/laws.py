"""The laws of flows, one function per law; each yields findings that `check_flow` judges."""

import io
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor

from semflow.flows import Flow
from semflow.nn import Context

from .case import Case, Finding, fact, noise, scramble

Law = Callable[[Case], Iterator[Finding]]
FLOATS = (torch.float32, torch.float64)


@torch.no_grad()
def shapes(case: Case) -> Iterator[Finding]:
    """Check shapes and dtypes, z as x and log_det as the event and in float32 or wider, and that values are finite."""
    x = case.x
    result = case.flow(x, case.context)
    pair = isinstance(result, tuple) and len(result) == 2 and all(isinstance(part, Tensor) for part in result)
    yield fact("forward must return the tensors (z, log_det)", type(result).__name__, pair)
    z, log_det = result
    yield _like("z", z, x)
    shape = (len(x), *x.shape[2:]) if case.event == "location" else (len(x),)
    claim = f"log_det must be {shape} for event {case.event!r}"
    yield fact(claim, str(tuple(log_det.shape)), log_det.shape == shape)
    yield fact("log_det must be float32 or float64", str(log_det.dtype), log_det.dtype in FLOATS)
    for name, part in (("z", z), ("log_det", log_det)):
        yield fact(f"{name} must be finite", "inf or NaN", bool(part.isfinite().all()))
    yield _like("inverse(z)", case.flow.inverse(z, case.context), x)


def _like(name: str, found: object, x: Tensor) -> Finding:
    if not isinstance(found, Tensor):
        return fact(f"{name} must be a tensor", type(found).__name__, False)
    holds = found.shape == x.shape and found.dtype == x.dtype
    claim = f"{name} must be {tuple(x.shape)} of {x.dtype}, like x"
    return fact(claim, f"{tuple(found.shape)} of {found.dtype}", holds)


@torch.no_grad()
def purity(case: Case) -> Iterator[Finding]:
    """Check that results are reproducible, and that neither the input nor the state of the flow changes."""
    flow, x, state = case.flow, case.x.clone(), deepcopy(case.flow.state_dict())
    z, log_det = (part.clone() for part in flow(x, case.context))
    yield fact("forward must not change x", "another x", torch.equal(x, case.x))
    given = z.clone()
    flow.inverse(given, case.context)
    yield fact("inverse must not change z", "another z", torch.equal(given, z))
    changed = [name for name, value in flow.state_dict().items() if not _same(value, state[name])]
    flow.load_state_dict(state)
    yield fact("forward must not change the state", f"another {', '.join(changed)}", not changed)
    again = flow(x, case.context)
    yield case.equal("z must be the same when forward is called again", again[0], z)
    yield case.equal("log_det must be the same when forward is called again", again[1], log_det)


def _same(a: object, b: object) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b


@torch.no_grad()
def layout(case: Case) -> Iterator[Finding]:
    """Check that results are the same for x contiguous, channels_last, and a view of a larger tensor."""
    z, log_det = case.flow(case.x.contiguous(), case.context)
    x = case.flow.inverse(z.contiguous(), case.context)
    wider = torch.cat((case.x, case.x), dim=3)[..., : case.x.shape[3]]
    for name, same in (("channels_last", _channels_last(case.x)), ("a view", wider)):
        other_z, other_log_det = case.flow(same, case.context)
        yield case.equal(f"z must be the same if x is {name}", other_z, z)
        yield case.equal(f"log_det must be the same if x is {name}", other_log_det, log_det)
    other_x = case.flow.inverse(_channels_last(z), case.context)
    yield case.equal("inverse(z) must be the same if z is channels_last", other_x, x)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def inverse(case: Case) -> Iterator[Finding]:
    """Check that forward and inverse undo each other, in the dtype of x and in float64."""
    for at in (case, case.to(torch.float64)):
        z, _ = at.flow(at.x, at.context)
        yield at.equal("inverse(forward(x)) must equal x", at.flow.inverse(z, at.context), at.x)
        # A z that forward did not compute, but close enough to be in its range.
        z = z.roll(1, 0) + 0.1 * z.std() * noise(z, at.generator())
        again, _ = at.flow(at.flow.inverse(z, at.context), at.context)
        yield at.equal("forward(inverse(z)) must equal z", again, z)


@torch.no_grad()
def locality(case: Case) -> Iterator[Finding]:
    """Check for event "location" that z and log_det at a location depend on x there only."""
    if case.event != "location":
        return
    at, generator = case.to(torch.float64), case.generator()
    z, log_det = at.flow(at.x, at.context)
    # Change x in random halves of the locations. Finite changes, unlike gradients, see through `detach`.
    for _ in range(4):
        changed = torch.rand(log_det.shape, generator=generator) < 0.5
        changed.view(-1)[0], changed.view(-1)[-1] = True, False
        changed = changed.to(at.x.device)
        other_z, other_log_det = at.flow(at.x + changed[:, None] * noise(at.x, generator), at.context)
        same_z, same_log_det = torch.where(changed[:, None], z, other_z), torch.where(changed, log_det, other_log_det)
        yield at.equal("z at a location must depend on x there only", same_z, z)
        yield at.equal("log_det at a location must depend on x there only", same_log_det, log_det)


@torch.no_grad()
def batch(case: Case) -> Iterator[Finding]:
    """Check that the result of an image does not depend on the batch."""
    for at in (case, case.to(torch.float64)):
        z, log_det = at.flow(at.x, at.context)
        x = at.flow.inverse(z, at.context)
        for i in range(len(at.x)):
            one, context = slice(i, i + 1), at.context_of(i)
            one_z, one_log_det = at.flow(at.x[one], context)
            yield at.equal("z of an image alone must equal that in a batch", one_z, z[one])
            yield at.equal("log_det of an image alone must equal that in a batch", one_log_det, log_det[one])
            one_x = at.flow.inverse(z[one], context)
            yield at.equal("inverse(z) of an image alone must equal that in a batch", one_x, x[one])


def log_det(case: Case) -> Iterator[Finding]:
    """Check that log_det is log |det dz/dx| of autograd's Jacobian in float64."""
    at = case.to(torch.float64)
    x = at.x.requires_grad_()
    z, found = at.flow(x, at.context)
    rows = []
    for row in _units(z, at).unbind(1):  # locations or images do not mix, so one backward pass serves all of them
        (gradient,) = torch.autograd.grad(row.sum(), x, retain_graph=True)
        rows.append(_units(gradient, at))
    right = torch.linalg.slogdet(torch.stack(rows, dim=1)).logabsdet
    yield at.equal("log_det must equal slogdet of autograd's Jacobian dz/dx", found.flatten(), right)


def _units(x: Tensor, case: Case) -> Tensor:
    """Reshape to one row per log-det: (B H W, C) or (B, C H W)."""
    return x.permute(0, 2, 3, 1).flatten(0, 2) if case.event == "location" else x.flatten(1)


def gradients(case: Case) -> Iterator[Finding]:
    """Check that gradients are finite, not zero for any parameter, and agree with finite differences."""
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
    for _ in range(8):  # all units of a small subnet may be off at one input, but not at every input
        if not all(reached):
            with torch.no_grad():
                x.copy_(at.x.roll(1, 0) + 3 * noise(x, generator))
            reached = [before or bool((g != 0).any()) for before, g in zip(reached, gradient(), strict=True)]
    for (name, _), g, is_reached in zip(named, found, reached, strict=True):
        unconditional = case.context is None and any(word in name for word in ("context", "cond"))
        zero = "zero; give check_flow a context" if unconditional else "zero"
        yield fact(f"the gradient of {name} must not be zero", zero, is_reached)
        yield fact(f"the gradient of {name} must be finite", "inf or NaN", bool(g.isfinite().all()))

    # If a flow computes log_det in float32, its rounding needs a larger step.
    exact = all(part.dtype == torch.float64 for part in results)
    step, allowed = (1e-6, 1e-3) if exact else (1e-3, 1e-1)
    directions, values = [noise(g, generator) for g in found], []
    with torch.no_grad():
        x.copy_(at.x)
        for factor in (1, -2):  # one step forward, two back
            for (_, p), direction in zip(named, directions, strict=True):
                p.add_(direction, alpha=factor * step)
            values.append(loss())
    right = (values[0] - values[1]) / (2 * step)
    slope = torch.stack([(g * d).sum() for g, d in zip(found, directions, strict=True)]).sum()
    length = torch.stack([g.square().sum() for g in found]).sum().sqrt()
    off = ((slope - right).abs() / length).item()
    claim = f"the derivative along a random direction must equal finite differences to {allowed:.1g}"
    yield Finding(claim, f"a deviation of {off:.2g} of the gradient's length", off, allowed)


@torch.no_grad()
def autocast(case: Case) -> Iterator[Finding]:
    """Check that under bfloat16 autocast shapes are kept, values are finite, and log_det is float32."""
    at = case.to(torch.float32)
    z, log_det = at.flow(at.x, at.context)
    with torch.autocast(at.x.device.type, dtype=torch.bfloat16):
        half_z, half_log_det = at.flow(at.x, at.context)
    yield fact("log_det must be float32 under autocast", str(half_log_det.dtype), half_log_det.dtype in FLOATS)
    same = half_log_det.shape == log_det.shape and half_z.shape == z.shape
    yield fact("z and log_det must keep their shapes under autocast", "other shapes", same)
    finite = bool(half_z.isfinite().all() and half_log_det.isfinite().all())
    yield fact("z and log_det must be finite under autocast", "inf or NaN", finite)


@torch.no_grad()
def state_dict(case: Case) -> Iterator[Finding]:
    """Check that another flow gives the same results after loading the state dict."""
    file = io.BytesIO()
    torch.save(case.flow.state_dict(), file)
    file.seek(0)
    if case.factory is None:
        other, hint = deepcopy(case.module), " (give factory= if the flow has constants outside of the state dict)"
        scramble(other, case.generator())
    else:
        other, hint = case.factory().to(case.x.device, case.x.dtype).train(case.module.training), ""
    other.load_state_dict(torch.load(file, map_location=case.x.device, weights_only=True))
    claim = f"must be the same after loading the state dict{hint}"
    z, log_det = case.flow(case.x, case.context)
    other_z, other_log_det = other(case.x, case.context)
    yield case.equal(f"z {claim}", other_z, z)
    yield case.equal(f"log_det {claim}", other_log_det, log_det)
    other_x = cast(Flow, other).inverse(z, case.context)
    yield case.equal(f"inverse(z) {claim}", other_x, case.flow.inverse(z, case.context))


def compiled(case: Case) -> Iterator[Finding]:
    """Check that torch.compile captures forward, its gradient and inverse in one graph each, with equal results."""
    if case.compile_backend is None:
        return
    flow, results = case.flow, []
    for forward, back in ((flow, flow.inverse), (_compile(flow, case), _compile(flow.inverse, case))):
        x = case.x.clone().requires_grad_()
        z, log_det = forward(x, case.context)
        (gradient,) = torch.autograd.grad(z.square().sum() + log_det.sum(), x)
        with torch.no_grad():
            results.append((z, log_det, gradient, back(z.detach(), case.context)))
    for name, right, found in zip(("z", "log_det", "the gradient of x", "inverse(z)"), *results, strict=True):
        yield case.equal(f"{name} of the compiled flow must equal that in eager mode", found, right)


def _compile(function: Callable[..., Any], case: Case) -> Callable[..., Any]:
    def call(x: Tensor, context: Context) -> Any:
        return function(x, context)

    # torch.compile limits recompilations per code object, so each flow needs its own.
    call.__code__ = call.__code__.replace()
    return torch.compile(call, fullgraph=True, dynamic=False, backend=cast(str, case.compile_backend))


LAWS: Mapping[str, Law] = {
    law.__name__: law
    for law in (shapes, purity, layout, inverse, locality, batch, log_det, gradients, autocast, state_dict, compiled)
}
"""All laws by name, in the order in which they are checked."""
