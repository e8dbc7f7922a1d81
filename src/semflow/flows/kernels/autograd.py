"""The kernels as functions of autograd."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from semflow.functional import soft_clamp

from .operators import location_operator
from .passes import elementwise_backward, elementwise_forward, location_backward, location_forward
from .steps import CouplingForm, along_channels

__all__ = ["ELEMENTWISE", "LOCATION", "Kernel", "apply", "elementwise_composition", "location_composition"]


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
