"""The two passes over a block that `fused` makes of it, as operators that torch.compile calls as they are.

Images go through in groups that fit the cache and are worked on in place. What backward needs is kept (the input, the
hidden units, the log-scales and the new half), and all that is elementwise is computed again.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..functional import Clamp
from .products import packed, product

__all__ = ["CouplingForm", "backward_pass", "forward_pass", "operator"]

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

    def log_scale(self, raw: Tensor) -> Tensor:
        """`soft_clamp` of gain raw. tanh(x) = 2 sigmoid(2 x) - 1: torch's sigmoid takes a sixth of the time."""
        slope = 1.0 if self.clamp_form == "tanh" else 1.0 / self.clamp
        return raw.mul(2 * self.gain * slope).sigmoid_().sub_(0.5).mul_(2 * self.clamp)

    def slope(self, log_scale: Tensor) -> Tensor:
        """The derivative of that by raw, from its value c: gain k (1 - (c / bound)^2)."""
        top = self.gain * (self.clamp if self.clamp_form == "tanh" else 1.0)
        return log_scale.square().mul_(-top / self.clamp**2).add_(top)


def forward_pass(form: CouplingForm, keep: bool, index: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """z and log_det; then log-scales and the coupling's new half, empty unless kept, and hidden units of each group."""
    x, table, weight, weight_out, bias_out, *affine = tensors
    z, log_det = torch.empty_like(x), x.new_empty(len(x))
    kept, width = len(x) if keep else 0, len(weight_out) // 2
    kept_log_scale, kept_new = x.new_empty(kept, width), x.new_empty(kept if affine else 0, width)
    kept_hidden: list[Tensor] = []
    groups = list(_groups(len(x), table))
    if len(groups) > 1:
        weight, weight_out = (packed(w, len(x) // len(groups)) for w in (weight, weight_out))
    for rows, part in groups:
        passive, active = form.halves(x[rows])
        hidden = product(passive, weight)
        hidden.view(-1, *part.shape[1:]).add_(part)
        raw, offset = product(hidden.relu_(), weight_out, bias_out).chunk(2, dim=1)
        log_scale = form.log_scale(raw)
        torch.sum(log_scale, 1, out=log_det[rows])
        new = torch.add(_exp(log_scale).mul_(active), offset, alpha=form.gain)
        if keep:
            kept_hidden.append(hidden)
            kept_log_scale[rows] = log_scale
        if index is None:
            for half, filling in zip(form.halves(z[rows]), (passive, new), strict=True):
                half.copy_(filling)
            continue
        if keep:
            kept_new[rows] = new
        u = torch.empty_like(x[rows])
        scale, shift = (form.halves(vector[None]) for vector in affine)
        for half, *given in zip(form.halves(u), shift, (passive, new), scale, strict=True):
            torch.addcmul(*given, out=half)
        torch.index_select(u, 1, index, out=z[rows])
    return z, log_det, kept_log_scale, kept_new, *kept_hidden


def backward_pass(
    form: CouplingForm,
    needs: Sequence[bool],
    inverse: Tensor | None,
    gradients: tuple[Tensor, Tensor],
    kept: Sequence[Tensor],
    *tensors: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients of all tensors; those of x, table and the two weights are empty or zero where not needed."""
    x, table, weight, weight_out, bias_out, *affine = tensors
    (grad_z, grad_log_det), (kept_log_scale, kept_new, *hidden_units) = gradients, kept
    need_x, need_table, need_weight, need_out = needs[:4]
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    grad_table, grad_bias = torch.zeros_like(table), torch.zeros_like(bias_out)
    grad_affine = [torch.zeros_like(vector) for vector in affine]
    grad_weight = grad_out = None
    for (rows, part), hidden in zip(_groups(len(x), grad_table), hidden_units, strict=True):
        passive, active = form.halves(x[rows])
        grad_u, log_scale = grad_z[rows], kept_log_scale[rows]
        if inverse is not None:
            grad_u = grad_u.index_select(1, inverse)
            grad_affine[1].add_(grad_u.sum(0))
            for grad, grad_half, half in zip(
                form.halves(grad_affine[0][None]), form.halves(grad_u), (passive, kept_new[rows]), strict=True
            ):
                grad.add_((grad_half * half).sum(0))
            grad_u.mul_(affine[0])
        grad_same, grad_new = form.halves(grad_u)
        grad_active = _exp(log_scale).mul_(grad_new)
        grad_raw = x.new_empty(len(active), len(weight_out))
        grad_scale, grad_offset = grad_raw.chunk(2, dim=1)
        torch.addcmul(grad_log_det[rows, None], grad_active, active, out=grad_scale)
        grad_scale.mul_(form.slope(log_scale))
        torch.mul(grad_new, form.gain, out=grad_offset)
        grad_hidden = product(grad_raw, weight_out.T)
        _relu_backward(grad_hidden, hidden, 0, grad_input=grad_hidden)
        grad_bias.add_(grad_raw.sum(0))
        if need_x:
            grad_passive, to_active = form.halves(grad_x[rows])
            torch.add(product(grad_hidden, weight.T), grad_same, out=grad_passive)
            to_active.copy_(grad_active)
        if need_table:
            part.add_(grad_hidden.view(-1, *part.shape[1:]).sum_to_size(part.shape))
        if need_weight:
            grad_weight = _plus_product(grad_weight, grad_hidden.T, passive)
        if need_out:
            grad_out = _plus_product(grad_out, grad_raw.T, hidden)
    weights = (x.new_empty(0) if grad is None else grad for grad in (grad_weight, grad_out))
    return grad_x, grad_table, *weights, grad_bias, *grad_affine


def _groups(locations: int, table: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of whole images, and the part of the table that belongs to them."""
    places = table.shape[1]
    images = max(1, ROWS // places)
    for first in range(0, locations // places, images):
        part = table[first : first + images] if len(table) > 1 else table
        yield slice(first * places, (first + images) * places), part


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    # The first product makes the sum: zeros to start from would cost two passes over the weights.
    return product(a, b.contiguous().T) if total is None else total.addmm_(a, b)


def _exp(x: Tensor) -> Tensor:
    # A third of the time of torch's exp.
    return x.mul(math.log2(math.e)).exp2_()


_relu_backward = torch.ops.aten.threshold_backward.grad_input


@torch.library.custom_op("semflow::block", mutates_args=())
def _block(
    x: Tensor,
    table: Tensor,
    weight: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    affine: list[Tensor],
    index: Tensor | None,
    inverse: Tensor | None,
    sizes: list[int],
    swap: bool,
    numbers: list[float],
    clamp_form: str,
    keep: bool,
) -> list[Tensor]:
    form = _form(sizes, swap, numbers, clamp_form)
    return list(forward_pass(form, keep, index, x, table, weight, weight_out, bias_out, *affine))


@_block.register_fake
def _(*args: Any) -> list[Tensor]:
    x, table, weight, weight_out, affine, keep = *args[:4], args[5], args[-1]
    kept, width = len(x) if keep else 0, len(weight_out) // 2
    hidden = (x.new_empty(len(x[rows]), len(weight)) for rows, _ in _groups(kept, table))
    return [torch.empty_like(x), *map(x.new_empty, (len(x), (kept, width), (kept if affine else 0, width))), *hidden]


@torch.library.custom_op("semflow::block_backward", mutates_args=())
def _block_backward(
    gradients: list[Tensor],
    kept: list[Tensor],
    tensors: list[Tensor],
    needs: list[bool],
    inverse: Tensor | None,
    sizes: list[int],
    swap: bool,
    numbers: list[float],
    clamp_form: str,
) -> list[Tensor]:
    form, (grad_z, grad_log_det) = _form(sizes, swap, numbers, clamp_form), gradients
    return list(backward_pass(form, needs, inverse, (grad_z, grad_log_det), kept, *tensors))


@_block_backward.register_fake
def _(
    gradients: list[Tensor], kept: list[Tensor], tensors: list[Tensor], needs: list[bool], *args: Any
) -> list[Tensor]:
    empty = {0: not needs[0], 2: not needs[2], 3: not needs[3]}
    return [t.new_empty(0) if empty.get(i) else torch.empty_like(t) for i, t in enumerate(tensors)]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, affine, _, inverse, sizes, swap, numbers, clamp_form, _ = inputs
    ctx.save_for_backward(inverse, *tensors, *affine, *output[2:])
    ctx.form, ctx.tensors = (sizes, swap, numbers, clamp_form), len(tensors) + len(affine)


def _backward(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    inverse, *saved = ctx.saved_tensors
    tensors, kept = saved[: ctx.tensors], saved[ctx.tensors :]
    needs = [bool(need) for need in ctx.needs_input_grad[:4]]
    given = _block_backward(list(gradients[:2]), kept, tensors, needs, inverse, *ctx.form)
    wanted = (grad if need else None for grad, need in zip(given[:4], needs, strict=True))
    return *wanted, given[4], given[5:], *(None,) * 7


_block.register_autograd(_backward, setup_context=_keep_for_backward)


def operator(
    form: CouplingForm, keep: bool, index: Tensor | None, inverse: Tensor | None, *tensors: Tensor
) -> tuple[Tensor, Tensor]:
    """`forward_pass` and its gradient for a graph."""
    numbers = [form.gain, form.clamp]
    results = cast(Any, _block)(
        *tensors[:5], list(tensors[5:]), index, inverse, list(form.sizes), form.swap, numbers, form.clamp_form, keep
    )
    return results[0], results[1]


def _form(sizes: list[int], swap: bool, numbers: list[float], clamp_form: str) -> CouplingForm:
    (first, second), (gain, clamp) = sizes, numbers
    return CouplingForm((first, second), swap, gain, clamp, cast(Clamp, clamp_form))
