"""The two passes over a block that `fused` makes of it, as operators that torch.compile calls as they are.

Images go through in groups that fit the cache and are worked on in place. What backward needs is kept (the input, the
hidden units, the log-scales and the new half), and all that is elementwise is computed again.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..functional import Clamp, soft_clamp

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

    def slope(self, log_scale: Tensor) -> Tensor:
        """The derivative of the clamp, from its value c: k (1 - (c / bound)^2)."""
        top = self.clamp if self.clamp_form == "tanh" else 1.0
        return log_scale.square().mul_(-top / self.clamp**2).add_(top)


def forward_pass(form: CouplingForm, keep: bool, index: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """z and log_det; and hidden units, log-scales and the coupling's new half, which are empty unless kept."""
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


def backward_pass(
    form: CouplingForm,
    needs: Sequence[bool],
    inverse: Tensor | None,
    gradients: tuple[Tensor, Tensor],
    kept: tuple[Tensor, Tensor, Tensor],
    *tensors: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients of all tensors; those of x, table and the two weights are empty or zero where not needed."""
    x, table, weight, weight_out, bias_out, *affine = tensors
    (grad_z, grad_log_det), (kept_hidden, kept_log_scale, kept_new) = gradients, kept
    need_x, need_table, need_weight, need_out = needs[:4]
    grad_x, grad_table, grad_bias = torch.empty_like(x), torch.zeros_like(table), torch.zeros_like(bias_out)
    grad_affine = [torch.zeros_like(vector) for vector in affine]
    grad_weight = grad_out = None
    for rows, part in _groups(len(x), grad_table):
        (passive, active), (grad_passive, grad_active) = form.halves(x[rows]), form.halves(grad_x[rows])
        grad_u = grad_z[rows]
        if inverse is not None:
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
    return torch.mm(a, b) if total is None else total.addmm_(a, b)


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
    x, weight, weight_out, affine, keep = args[0], args[2], args[3], args[5], args[-1]
    kept, width = len(x) if keep else 0, len(weight_out) // 2
    shapes = ((kept, len(weight)), (kept, width), (kept if affine else 0, width))
    return [torch.empty_like(x), x.new_empty(len(x)), *map(x.new_empty, shapes)]


@torch.library.custom_op("semflow::block_backward", mutates_args=())
def _block_backward(
    gradients: list[Tensor],
    kept: list[Tensor],
    tensors: list[Tensor],
    inverse: Tensor | None,
    sizes: list[int],
    swap: bool,
    numbers: list[float],
    clamp_form: str,
) -> list[Tensor]:
    form, (grad_z, grad_log_det) = _form(sizes, swap, numbers, clamp_form), gradients
    hidden, log_scale, new = kept
    return list(backward_pass(form, [True] * 4, inverse, (grad_z, grad_log_det), (hidden, log_scale, new), *tensors))


@_block_backward.register_fake
def _(gradients: list[Tensor], kept: list[Tensor], tensors: list[Tensor], *args: Any) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in tensors]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, affine, _, inverse, sizes, swap, numbers, clamp_form, _ = inputs
    ctx.save_for_backward(*output[2:], inverse, *tensors, *affine)
    ctx.form = sizes, swap, numbers, clamp_form


def _backward(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    hidden, log_scale, new, inverse, *tensors = ctx.saved_tensors
    given = _block_backward(list(gradients[:2]), [hidden, log_scale, new], tensors, inverse, *ctx.form)
    return *given[:5], given[5:], *(None,) * 7


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
