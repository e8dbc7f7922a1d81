"""A block of a flow as one step of autograd: the same numbers as its composition, in fewer passes over less memory.

Images go through in groups that fit the cache and are worked on in place. What backward needs is kept (the input, the
hidden units, the log-scales and the new half), and all that is elementwise is computed again.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import Clamp, soft_clamp

__all__ = ["CouplingForm", "composition", "fused", "fusible"]

ROWS = 1024
"""Locations of a group: enough for matrix products at full speed, few enough for the cache."""


class CouplingForm(NamedTuple):
    """What of a coupling is no tensor: the sizes of the two parts of x, if the first is the active one, the clamp."""

    sizes: tuple[int, int]
    swap: bool
    gain: float
    clamp: float
    clamp_form: Clamp

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(passive, active) of (N, C), as views."""
        first, second = x.split(self.sizes, dim=1)
        return (second, first) if self.swap else (first, second)

    def slope(self, log_scale: Tensor) -> Tensor:
        """The derivative of the clamp, from its value c: k (1 - (c / bound)^2)."""
        top = self.clamp if self.clamp_form == "tanh" else 1.0
        return log_scale.square().mul_(-top / self.clamp**2).add_(top)


def fusible(x: Tensor, form: CouplingForm, *modules: nn.Module) -> bool:
    """Whether `fused` may stand for the composition of the modules: eagerly, on a CPU, where nobody watches them.

    A compiler makes of the composition by itself what this file does by hand, and a module with a hook is to be called.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and form.clamp_form != "atan"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in modules)
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
    z, log_det, *_ = _Fused.apply(  # type: ignore[no-untyped-call]
        form, torch.is_grad_enabled(), index, inverse, x, table, weight, weight_out, bias_out, *affine
    )
    return z, log_det


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
    passive, active = form.halves(x)
    hidden = F.relu((F.linear(passive, weight).unflatten(0, (-1, table.shape[1])) + table).flatten(0, 1))
    raw, offset = (F.linear(hidden, weight_out, bias_out) * form.gain).chunk(2, dim=1)
    log_scale = soft_clamp(raw, form.clamp, form.clamp_form)
    active = active * torch.exp(log_scale) + offset
    u = torch.cat((active, passive) if form.swap else (passive, active), dim=1)
    if index is not None:
        u = (u * affine[0] + affine[1]).index_select(1, index)
    return u, log_scale.sum(1)


class _Fused(torch.autograd.Function):
    """`fused`, with what backward looks at as further outputs: hidden units, log-scales, the coupling's new half."""

    @staticmethod
    def forward(
        form: CouplingForm, keep: bool, index: Tensor | None, inverse: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        x, table, weight, weight_out, bias_out, *affine = tensors
        units, width = len(weight), len(weight_out) // 2
        z, log_det = torch.empty_like(x), x.new_empty(len(x))
        kept = len(x) if keep else 0
        kept_hidden, kept_log_scale = x.new_empty(kept, units), x.new_empty(kept, width)
        kept_new = x.new_empty(kept if affine else 0, width)
        for rows, part in _groups(len(x), table):
            passive, active = form.halves(x[rows])
            u = torch.empty_like(x[rows]) if affine else z[rows]
            same, new = form.halves(u)
            hidden = kept_hidden[rows] if keep else x.new_empty(len(passive), units)
            hidden.view(-1, *part.shape[1:]).copy_(part)
            hidden.addmm_(passive, weight.T).relu_()
            raw, offset = torch.addmm(bias_out, hidden, weight_out.T, beta=form.gain, alpha=form.gain).chunk(2, dim=1)
            log_scale = soft_clamp(raw, form.clamp, form.clamp_form)
            torch.sum(log_scale, 1, out=log_det[rows])
            if keep:
                kept_log_scale[rows] = log_scale
            torch.addcmul(offset, active, log_scale.exp_(), out=new)
            same.copy_(passive)
            if index is not None:
                if keep:
                    kept_new[rows] = new
                u.mul_(affine[0]).add_(affine[1])
                torch.index_select(u, 1, index, out=z[rows])
        return z, log_det, kept_hidden, kept_log_scale, kept_new

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.form, _, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*output[2:], *tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        kept_hidden, kept_log_scale, kept_new, index, inverse, *tensors = ctx.saved_tensors
        x, table, weight, weight_out, bias_out, *affine = tensors
        form: CouplingForm = ctx.form
        grad_z = torch.zeros_like(x) if gradients[0] is None else gradients[0]
        grad_log_det = x.new_zeros(len(x)) if gradients[1] is None else gradients[1]
        if torch.is_grad_enabled():  # this derivative is to be differentiated itself
            pull = torch.func.vjp(partial(composition, form, index), *tensors)[1]
            return None, None, None, None, *pull((grad_z, grad_log_det))
        need_x, need_table, need_weight, need_out, *_ = ctx.needs_input_grad[4:]
        grad_x, grad_table, grad_bias = torch.empty_like(x), torch.zeros_like(table), torch.zeros_like(bias_out)
        grad_affine = [torch.zeros_like(vector) for vector in affine]
        grad_weight = grad_out = None
        for rows, part in _groups(len(x), grad_table):
            (passive, active), (grad_passive, grad_active) = form.halves(x[rows]), form.halves(grad_x[rows])
            grad_u = grad_z[rows]
            if affine:
                grad_u = grad_u.index_select(1, inverse)
                grad_affine[1].add_(grad_u.sum(0))
                for grad, grad_half, half in zip(
                    form.halves(grad_affine[0][None]), form.halves(grad_u), (passive, kept_new[rows]), strict=True
                ):
                    grad.add_((grad_half * half).sum(0))
                grad_u.mul_(affine[0])
            grad_same, grad_new = form.halves(grad_u)
            hidden, log_scale = kept_hidden[rows], kept_log_scale[rows]
            grad_raw = x.new_empty(len(active), len(weight_out))
            grad_scale, grad_offset = grad_raw.chunk(2, dim=1)
            torch.mul(grad_new, torch.exp(log_scale), out=grad_active)
            torch.addcmul(grad_log_det[rows, None], grad_active, active, out=grad_scale)
            grad_scale.mul_(form.slope(log_scale))
            grad_offset.copy_(grad_new)
            grad_raw.mul_(form.gain)
            grad_hidden = torch.mm(grad_raw, weight_out)
            _relu_backward(grad_hidden, hidden, 0, grad_input=grad_hidden)
            grad_bias.add_(grad_raw.sum(0))
            if need_x:
                torch.addmm(grad_same, grad_hidden, weight, out=grad_passive)
            if need_table:
                part.add_(grad_hidden.view(-1, *part.shape[1:]).sum_to_size(part.shape))
            if need_weight:
                grad_weight = _plus_product(grad_weight, grad_hidden.T, passive)
            if need_out:
                grad_out = _plus_product(grad_out, grad_raw.T, hidden)
        return None, None, None, None, grad_x, grad_table, grad_weight, grad_out, grad_bias, *grad_affine

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        index, _, *tensors = ctx.saved_tensors
        given = tuple(torch.zeros_like(x) if t is None else t for x, t in zip(tensors, tangents[4:], strict=True))
        results, pull = torch.func.vjp(partial(composition, ctx.form, index), *tensors)[:2]
        push = torch.func.vjp(pull, results)[1]  # pull is linear, and its transpose pushes forward
        return *push(given)[0], None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        form, _, index, _, *tensors = inputs
        results = torch.vmap(partial(composition, form), (in_dims[2], *in_dims[4:]))(index, *tensors)
        none = tensors[0].new_empty(0)
        return (*results, none, none, none), (0, 0, None, None, None)


def _groups(locations: int, table: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of whole images, and the part of the table that belongs to them."""
    places = table.shape[1]
    images = max(1, ROWS // places)
    for first in range(0, locations // places, images):
        part = table[first : first + images] if len(table) > 1 else table
        yield slice(first * places, (first + images) * places), part


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    # The first product makes the sum: zeros to start from would cost two passes over the weights.
    return torch.mm(a, b) if total is None else total.addmm_(a, b)


_relu_backward = torch.ops.aten.threshold_backward.grad_input
