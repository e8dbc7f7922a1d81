"""The kernels as functions of autograd, and the location kernel as operators for torch.compile."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from semflow.functional import Clamp, soft_clamp

from .passes import elementwise_backward, elementwise_forward, location_backward, location_forward, location_groups
from .steps import CouplingForm, along_channels


class Kernel(NamedTuple):
    """Forward and backward pass, and the plain operators that they equal, which give all other derivatives."""

    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor, ...]]
    composition: Callable[..., tuple[Tensor, Tensor]]


def location_composition(
    form: CouplingForm, index: Tensor, x: Tensor, table: Tensor, *tensors: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute a block with the subnet W2 relu(Wx p + table) + b2: z (N, C) and the log-det of the coupling (N).

    Shapes: x (N, C) with N = B H W; table (B or 1, H W or 1, hidden); then Wx (hidden, P), W2 (2 A, hidden), b2 (2 A),
    and scale and shift of the global affine (C).
    """
    weight, weight_out, bias_out, scale, shift = tensors
    passive, _ = form.halves(x)
    hidden = F.relu((F.linear(passive, weight).unflatten(0, (-1, table.shape[1])) + table).flatten(0, 1))
    return elementwise_composition(form, index, x, F.linear(hidden, weight_out, bias_out), scale, shift)


def elementwise_composition(
    form: CouplingForm, index: Tensor, x: Tensor, output: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute a block from x, (N, C) or (B, C, L), and the subnet's output, (N, 2 A) or (B, 2 A, L)."""
    passive, active = form.halves(x)
    raw, offset = (output * form.gain).chunk(2, dim=1)
    log_scale = soft_clamp(raw, form.clamp, form.clamp_form)
    active = active * torch.exp(log_scale) + offset
    u = torch.cat((active, passive) if form.swap else (passive, active), dim=1)
    return (u * along_channels(scale, x) + along_channels(shift, x)).index_select(1, index), log_scale.sum(1)


LOCATION = Kernel(location_forward, location_backward, location_composition)
ELEMENTWISE = Kernel(elementwise_forward, elementwise_backward, elementwise_composition)


def apply(
    kernel: Kernel, form: CouplingForm, index: Tensor, inverse: Tensor, *tensors: Tensor
) -> tuple[Tensor, Tensor]:
    """Return z and the log-det of the coupling; `tensors` are those of the kernel's composition, from x on."""
    if kernel is LOCATION and torch.compiler.is_compiling():
        return location_operator(form, torch.is_grad_enabled(), index, inverse, *tensors)
    z, log_det, *_ = _Fused.apply(  # type: ignore[no-untyped-call]
        kernel, form, torch.is_grad_enabled(), index, inverse, *tensors
    )
    return z, log_det


class _Fused(torch.autograd.Function):
    """The two passes; what forward keeps for backward are further outputs."""

    @staticmethod
    def forward(
        kernel: Kernel, form: CouplingForm, keep: bool, index: Tensor, inverse: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        return kernel.forward(form, keep, index, *tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.kernel, ctx.form, _, *tensors = inputs
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
        if torch.is_grad_enabled():  # the gradient will be differentiated again
            pull = torch.func.vjp(partial(ctx.kernel.composition, ctx.form, index), *tensors)[1]
            return *(None,) * 5, *pull((grad_z, grad_log_det))
        needs = ctx.needs_input_grad[5:]
        given = ctx.kernel.backward(ctx.form, needs, inverse, (grad_z, grad_log_det), kept, *tensors)
        return *(None,) * 5, *(grad if need else None for grad, need in zip(given, needs, strict=True))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        index, _, *tensors = ctx.saved_tensors
        given = tuple(torch.zeros_like(x) if t is None else t for x, t in zip(tensors, tangents[5:], strict=True))
        results, pull = torch.func.vjp(partial(ctx.kernel.composition, ctx.form, index), *tensors)[:2]
        push = torch.func.vjp(pull, results)[1]  # the transpose of the linear map `pull` is the jvp
        return *push(given)[0], *(None,) * ctx.kept

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        kernel, form, _, index, _, *tensors = inputs
        results = torch.vmap(partial(kernel.composition, form), (in_dims[3], *in_dims[5:]))(index, *tensors)
        empty = tensors[0].new_empty(0)
        return (*results, empty, empty), (0, 0, None, None)


TENSORS = 7
"""Differentiable inputs, from x to shift."""


# torch.compile calls custom operators without tracing into them. The number in their names must change with their
# signature or results, because the compile cache on disk identifies an operator by its name only.
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
