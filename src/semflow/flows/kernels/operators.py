"""The location kernel as custom operators, which torch.compile calls without tracing into them.

The number in the operators' names must change with their signature or results, because the compile cache on disk
identifies an operator by its name only.
"""

from typing import Any, cast

import torch
from torch import Tensor

from semflow.functional import Clamp

from .passes import location_backward, location_forward, location_groups
from .steps import CouplingForm

__all__ = ["location_operator"]

TENSORS = 7
"""Differentiable inputs, from x to shift."""


@torch.library.custom_op("semflow::block_3", mutates_args=())
def _block(
    x: Tensor,
    table: Tensor,
    weight: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    scale: Tensor,
    shift: Tensor,
    index: Tensor,
    inverse: Tensor,
    sizes: list[int],
    swap: bool,
    numbers: list[float],
    clamp_form: str,
    keep: bool,
) -> list[Tensor]:
    form = _form(sizes, swap, numbers, clamp_form)
    return list(location_forward(form, keep, index, x, table, weight, weight_out, bias_out, scale, shift))


@_block.register_fake
def _(*args: Any) -> list[Tensor]:
    x, table, weight, weight_out, keep = *args[:4], args[-1]
    kept, width = len(x) if keep else 0, len(weight_out) // 2
    hidden = (x.new_empty(len(x[rows]), len(weight)) for rows, _ in location_groups(kept, table))
    return [torch.empty_like(x), *map(x.new_empty, (len(x), (kept, width), (kept, width))), *hidden]


@torch.library.custom_op("semflow::block_3_backward", mutates_args=())
def _block_backward(
    gradients: list[Tensor],
    kept: list[Tensor],
    tensors: list[Tensor],
    needs: list[bool],
    inverse: Tensor,
    sizes: list[int],
    swap: bool,
    numbers: list[float],
    clamp_form: str,
) -> list[Tensor]:
    form, (grad_z, grad_log_det) = _form(sizes, swap, numbers, clamp_form), gradients
    return list(location_backward(form, needs, inverse, (grad_z, grad_log_det), kept, *tensors))


@_block_backward.register_fake
def _(
    gradients: list[Tensor], kept: list[Tensor], tensors: list[Tensor], needs: list[bool], *args: Any
) -> list[Tensor]:
    empty = {0: not needs[0], 2: not needs[2], 3: not needs[3]}
    return [t.new_empty(0) if empty.get(i) else torch.empty_like(t) for i, t in enumerate(tensors)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, (_, inverse, *form, _) = inputs[:TENSORS], inputs[TENSORS:]
    ctx.save_for_backward(inverse, *tensors, *output[2:])
    ctx.form = form


def _backward(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    inverse, *saved = ctx.saved_tensors
    tensors, kept = saved[:TENSORS], saved[TENSORS:]
    needs = [bool(need) for need in ctx.needs_input_grad[:TENSORS]]
    given = _block_backward(list(gradients[:2]), kept, tensors, needs, inverse, *ctx.form)
    return *(grad if need else None for grad, need in zip(given, needs, strict=True)), *(None,) * 7


_block.register_autograd(_backward, setup_context=_setup_context)


def location_operator(
    form: CouplingForm, keep: bool, index: Tensor, inverse: Tensor, *tensors: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute what the location kernel does, as operators with a gradient for compiled graphs."""
    numbers = [form.gain, form.clamp]
    results = cast(Any, _block)(*tensors, index, inverse, list(form.sizes), form.swap, numbers, form.clamp_form, keep)
    return results[0], results[1]


def _form(sizes: list[int], swap: bool, numbers: list[float], clamp_form: str) -> CouplingForm:
    (first, second), (gain, clamp) = sizes, numbers
    return CouplingForm((first, second), swap, gain, clamp, cast(Clamp, clamp_form))
