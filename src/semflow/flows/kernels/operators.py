"""The two passes over a block as operators that torch.compile calls as they are.

torch's compile cache on disk knows an operator by its name alone: when the outputs change, so must the number in it.
"""

from typing import Any, cast

import torch
from torch import Tensor

from semflow.flows.steps import CouplingForm
from semflow.functional import Clamp

from .passes import backward_pass, forward_pass, groups_of

__all__ = ["operator"]


@torch.library.custom_op("semflow::block_2", mutates_args=())
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
    hidden = (x.new_empty(len(x[rows]), len(weight)) for rows, _ in groups_of(kept, table))
    return [torch.empty_like(x), *map(x.new_empty, (len(x), (kept, width), (kept, width if affine else 0))), *hidden]


@torch.library.custom_op("semflow::block_2_backward", mutates_args=())
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
