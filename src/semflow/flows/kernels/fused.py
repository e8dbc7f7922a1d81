"""A block of a flow as one step of autograd: the same numbers as its composition, in fewer passes over less memory."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow.errors import ConfigError
from semflow.flows.steps import CouplingForm, along_channels
from semflow.functional import soft_clamp

from .operators import operator
from .passes import backward_pass, backward_rest, forward_pass, forward_rest

__all__ = ["composition", "composition_rest", "fused", "fused_kernels", "fused_rest", "fusible"]

# Before torch 2.7 nothing tells an export from other compilations.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)

VARIABLE = "SEMFLOW_FUSED_KERNELS"
_enabled = os.environ.get(VARIABLE, "1") == "1"
if os.environ.get(VARIABLE, "1") not in ("0", "1"):
    raise ConfigError(f"{VARIABLE} must be 0 or 1, but got {os.environ[VARIABLE]!r}")


@contextmanager
def fused_kernels(enabled: bool) -> Iterator[None]:
    """Turn the fused kernels of couplings on or off in this process, for a `with` block.

    The kernels compute the same numbers as the plain operators, up to rounding, in less time and memory. They run on
    CPUs only and are on by default. The environment variable `SEMFLOW_FUSED_KERNELS=0` turns them off from the start.

    Args:
        enabled: True for the kernels, False for plain operators.

    Example:
        >>> from semflow.flows import AffineCoupling
        >>> flow, x = AffineCoupling(4), torch.randn(1, 4, 2, 2)
        >>> with fused_kernels(False):
        ...     z, log_det = flow(x)
        >>> torch.allclose(z, flow(x)[0], atol=1e-6)
        True
    """
    global _enabled
    before, _enabled = _enabled, enabled
    try:
        yield
    finally:
        _enabled = before


def fusible(x: Tensor, form: CouplingForm, *modules: nn.Module) -> bool:
    """Whether `fused` may stand for the composition of the modules: on a CPU, and where nobody watches them.

    A module with a hook is to be called, and what is exported must run without this library.
    """
    return (
        _enabled
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and form.clamp_form != "atan"
        and not torch.is_autocast_enabled("cpu")
        and not _is_exporting()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules
        )
    )


def fused(
    form: CouplingForm,
    x: Tensor,
    table: Tensor,
    weight: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    *affine: Tensor,
    index: Tensor | None = None,
    inverse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A coupling of x = [p, a] alone, or with the global affine and the permutation that follow it.

    u = [p, a exp(c(s)) + t] with (s, t) = gain (W2 relu(Wx p + table) + b2), and sum c(s), the coupling's log-det;
    z = (scale u + shift)[index].

    Args:
        form: what is no tensor.
        x: (N, C), N = B H W locations.
        table: (B, H W, hidden), what the context adds to the hidden units, bias included; B and H W may be 1 where all
            have the same.
        weight: (hidden, P).
        weight_out, bias_out: (2 A, hidden) and (2 A).
        affine, index, inverse: scale and shift; the permutation and its inverse. All (C), and all or none.

    Returns:
        z (N, C) and log_det (N).
    """
    if torch.compiler.is_compiling():
        tensors = (x, table, weight, weight_out, bias_out, *affine)
        return operator(form, torch.is_grad_enabled(), index, inverse, *tensors)
    return _apply(_BLOCK, form, index, inverse, x, table, weight, weight_out, bias_out, *affine)


def fused_rest(
    form: CouplingForm,
    x: Tensor,
    output: Tensor,
    *affine: Tensor,
    index: Tensor | None = None,
    inverse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`fused` from what a subnet of any kind gave: output = [s, t] before the gain.

    Args:
        x: (N, C) or (B, C, L).
        output: (N, 2 A) or (B, 2 A, L).

    Returns:
        z like x, and log_det (N) or (B, L).
    """
    return _apply(_REST, form, index, inverse, x, output, *affine)


def composition(
    form: CouplingForm,
    index: Tensor | None,
    x: Tensor,
    table: Tensor,
    weight: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    *affine: Tensor,
) -> tuple[Tensor, Tensor]:
    """What `fused` must equal, and what derivatives of its derivatives are taken of."""
    passive, _ = form.halves(x)
    hidden = F.relu((F.linear(passive, weight).unflatten(0, (-1, table.shape[1])) + table).flatten(0, 1))
    return composition_rest(form, index, x, F.linear(hidden, weight_out, bias_out), *affine)


def composition_rest(
    form: CouplingForm, index: Tensor | None, x: Tensor, output: Tensor, *affine: Tensor
) -> tuple[Tensor, Tensor]:
    """What `fused_rest` must equal."""
    passive, active = form.halves(x)
    raw, offset = (output * form.gain).chunk(2, dim=1)
    log_scale = soft_clamp(raw, form.clamp, form.clamp_form)
    active = active * torch.exp(log_scale) + offset
    u = torch.cat((active, passive) if form.swap else (passive, active), dim=1)
    if index is not None:
        scale, shift = (along_channels(vector, x) for vector in affine)
        u = (u * scale + shift).index_select(1, index)
    return u, log_scale.sum(1)


class _Passes(NamedTuple):
    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor, ...]]
    composition: Callable[..., tuple[Tensor, Tensor]]


_BLOCK = _Passes(forward_pass, backward_pass, composition)
_REST = _Passes(forward_rest, backward_rest, composition_rest)


def _apply(
    passes: _Passes, form: CouplingForm, index: Tensor | None, inverse: Tensor | None, *tensors: Tensor
) -> tuple[Tensor, Tensor]:
    z, log_det, *_ = _Fused.apply(  # type: ignore[no-untyped-call]
        passes, form, torch.is_grad_enabled(), index, inverse, *tensors
    )
    return z, log_det


class _Fused(torch.autograd.Function):
    """The two passes; what the first keeps for the second are further outputs."""

    @staticmethod
    def forward(
        passes: _Passes,
        form: CouplingForm,
        keep: bool,
        index: Tensor | None,
        inverse: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        return passes.forward(form, keep, index, *tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.passes, ctx.form, _, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[2:])
        ctx.kept = len(output) - 2
        ctx.save_for_backward(*output[2:], *tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        kept, (index, inverse, *tensors) = ctx.saved_tensors[: ctx.kept], ctx.saved_tensors[ctx.kept :]
        x = tensors[0]
        grad_z = torch.zeros_like(x) if gradients[0] is None else gradients[0]
        grad_log_det = x.new_zeros(len(x), *x.shape[2:]) if gradients[1] is None else gradients[1]
        if torch.is_grad_enabled():  # this derivative is to be differentiated itself
            pull = torch.func.vjp(partial(ctx.passes.composition, ctx.form, index), *tensors)[1]
            return *(None,) * 5, *pull((grad_z, grad_log_det))
        needs = ctx.needs_input_grad[5:]
        given = ctx.passes.backward(ctx.form, needs, inverse, (grad_z, grad_log_det), kept, *tensors)
        return *(None,) * 5, *(grad if need else None for grad, need in zip(given, needs, strict=True))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        index, _, *tensors = ctx.saved_tensors
        given = tuple(torch.zeros_like(x) if t is None else t for x, t in zip(tensors, tangents[5:], strict=True))
        results, pull = torch.func.vjp(partial(ctx.passes.composition, ctx.form, index), *tensors)[:2]
        push = torch.func.vjp(pull, results)[1]  # pull is linear, and its transpose pushes forward
        return *push(given)[0], *(None,) * ctx.kept

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        passes, form, _, index, _, *tensors = inputs
        results = torch.vmap(partial(passes.composition, form), (in_dims[3], *in_dims[5:]))(index, *tensors)
        none = tensors[0].new_empty(0)
        return (*results, none, none), (0, 0, None, None)
