"""A conditional coupling as one step of autograd: the same numbers as the plain composition, in fewer passes.

Images go through in groups that fit the cache and are worked on in place; what backward needs is kept (the input, the
hidden units, the log-scales), and all that is elementwise is computed again.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import Clamp, from_locations, soft_clamp, to_locations
from ..nn import Context, LocationSubnet, Subnet

__all__ = ["CouplingForm", "coupling", "fits", "plain"]

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


def fits(subnet: Subnet, x: Tensor, form: CouplingForm) -> TypeGuard[LocationSubnet]:
    """Whether `coupling` may stand for the composition: two plain linear layers, eagerly, on a CPU.

    A compiler makes of the composition what this file does by hand, and a layer that is replaced or watched by a hook
    is to be called.
    """
    return (
        type(subnet) is LocationSubnet
        and type(subnet.output) is nn.Linear
        and not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in subnet.modules())
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and form.clamp_form != "atan"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


def of_map(subnet: LocationSubnet, x: Tensor, context: Context, form: CouplingForm) -> tuple[Tensor, Tensor]:
    """`coupling` of a map (B, C, H, W): z of that shape and log_det (B, H, W)."""
    table, output = subnet.table(x, context), subnet.output
    z, log_det = coupling(to_locations(x), table, subnet.weight_x, output.weight, output.bias, form)
    return from_locations(z, (x.shape[2], x.shape[3])), log_det.view(len(x), *x.shape[2:])


def coupling(
    x: Tensor, table: Tensor, weight: Tensor, weight_out: Tensor, bias_out: Tensor, form: CouplingForm
) -> tuple[Tensor, Tensor]:
    """z = [p, a exp(c(s)) + t] and sum c(s), with (s, t) = gain (W2 relu(Wx p + table) + b2), for x = [p, a].

    Args:
        x: (N, C), N = B H W locations.
        table: (B, H W, hidden), the context's part of the hidden units, bias included; B and H W may be 1 if it is the
            same for all.
        weight: (hidden, P).
        weight_out, bias_out: (2 A, hidden) and (2 A).
        form: the rest.

    Returns:
        z (N, C) and log_det (N).
    """
    z, log_det, *_ = _Coupling.apply(x, table, weight, weight_out, bias_out, form, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return z, log_det


def plain(
    x: Tensor, table: Tensor, weight: Tensor, weight_out: Tensor, bias_out: Tensor, form: CouplingForm
) -> tuple[Tensor, Tensor]:
    """The same as one composes it: what `coupling` must equal, and what derivatives of its derivatives are taken of."""
    passive, active = form.halves(x)
    hidden = F.relu((F.linear(passive, weight).unflatten(0, (-1, table.shape[1])) + table).flatten(0, 1))
    scale, shift = (F.linear(hidden, weight_out, bias_out) * form.gain).chunk(2, dim=1)
    log_scale = soft_clamp(scale, form.clamp, form.clamp_form)
    active = active * torch.exp(log_scale) + shift
    return torch.cat((active, passive) if form.swap else (passive, active), dim=1), log_scale.sum(1)


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


class _Coupling(torch.autograd.Function):
    """`coupling`, with hidden units and log-scales as further outputs, which only backward looks at."""

    @staticmethod
    def forward(
        x: Tensor, table: Tensor, weight: Tensor, weight_out: Tensor, bias_out: Tensor, form: CouplingForm, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        units, active_channels = len(weight), len(weight_out) // 2
        z, log_det = torch.empty_like(x), x.new_empty(len(x))
        kept = len(x) if keep else 0
        kept_hidden, kept_log_scale = x.new_empty(kept, units), x.new_empty(kept, active_channels)
        for rows, part in _groups(len(x), table):
            (passive, active), (new_passive, new_active) = form.halves(x[rows]), form.halves(z[rows])
            hidden = kept_hidden[rows] if keep else x.new_empty(len(passive), units)
            hidden.view(-1, *part.shape[1:]).copy_(part)
            hidden.addmm_(passive, weight.T).relu_()
            raw = torch.addmm(bias_out, hidden, weight_out.T, beta=form.gain, alpha=form.gain)
            scale, shift = raw.split(active_channels, dim=1)
            log_scale = soft_clamp(scale, form.clamp, form.clamp_form)
            torch.sum(log_scale, 1, out=log_det[rows])
            if keep:
                kept_log_scale[rows] = log_scale
            torch.addcmul(shift, active, log_scale.exp_(), out=new_active)
            new_passive.copy_(passive)
        return z, log_det, kept_hidden, kept_log_scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.form, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*tensors, *output[2:])
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, kept_hidden, kept_log_scale = ctx.saved_tensors
        x, table, weight, weight_out, bias_out = inputs
        form: CouplingForm = ctx.form
        grad_z = torch.zeros_like(x) if gradients[0] is None else gradients[0]
        grad_log_det = x.new_zeros(len(x)) if gradients[1] is None else gradients[1]
        if torch.is_grad_enabled():  # this derivative is to be differentiated
            pull = torch.func.vjp(partial(plain, form=form), *inputs)[1]
            return (*pull((grad_z, grad_log_det)), None, None)
        need_x, need_table, need_weight, need_out, need_bias = ctx.needs_input_grad[:5]
        grad_x, grad_table, grad_bias = torch.empty_like(x), torch.zeros_like(table), torch.zeros_like(bias_out)
        grad_weight = grad_out = None
        for rows, part in _groups(len(x), grad_table):
            (passive, active), (grad_passive, grad_active) = form.halves(x[rows]), form.halves(grad_x[rows])
            grad_same, grad_new = form.halves(grad_z[rows])
            hidden, log_scale = kept_hidden[rows], kept_log_scale[rows]
            grad_raw = x.new_empty(len(active), len(weight_out))
            grad_scale, grad_shift = grad_raw.chunk(2, dim=1)
            torch.mul(grad_new, torch.exp(log_scale), out=grad_active)
            torch.addcmul(grad_log_det[rows, None], grad_active, active, out=grad_scale)
            grad_scale.mul_(form.slope(log_scale))
            grad_shift.copy_(grad_new)
            grad_raw.mul_(form.gain)
            grad_hidden = torch.mm(grad_raw, weight_out)
            _relu_backward(grad_hidden, hidden, 0, grad_input=grad_hidden)
            if need_x:
                torch.addmm(grad_same, grad_hidden, weight, out=grad_passive)
            if need_table:
                part.add_(grad_hidden.view(-1, *part.shape[1:]).sum_to_size(part.shape))
            if need_weight:
                grad_weight = _plus_product(grad_weight, grad_hidden.T, passive)
            if need_out:
                grad_out = _plus_product(grad_out, grad_raw.T, hidden)
            if need_bias:
                grad_bias.add_(grad_raw.sum(0))
        return grad_x, grad_table, grad_weight, grad_out, grad_bias, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        given = tuple(torch.zeros_like(x) if t is None else t for x, t in zip(inputs, tangents, strict=False))
        results, pull = torch.func.vjp(partial(plain, form=ctx.form), *inputs)[:2]
        push = torch.func.vjp(pull, results)[1]  # pull is linear, and its transpose pushes forward
        return (*push(given)[0], None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        *tensors, form, _ = inputs
        z, log_det = torch.vmap(partial(plain, form=form), in_dims[:5])(*tensors)
        return (z, log_det, z.new_empty(0), z.new_empty(0)), (0, 0, None, None)
