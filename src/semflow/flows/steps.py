"""What a coupling and the two flows after it do to a few locations once the subnet has spoken, and its derivative.

Elementwise, on locations that fit the cache, in as few passes over them as torch's operators allow. Channels are the
second dimension: locations lie in rows, (n, C), or as in images, (n, C, l).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from semflow.functional import Clamp

__all__ = ["CouplingForm", "along_channels", "backward_step", "forward_step"]


class CouplingForm(NamedTuple):
    """What of a coupling is no tensor: the sizes of the two parts of x, if the first is the active one, the clamp."""

    sizes: tuple[int, int]
    swap: bool
    gain: float
    clamp: float
    clamp_form: Clamp

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(passive, active) of (N, C) or (N, C, L), as views."""
        first, second = x.split(self.sizes, dim=1)
        return (second, first) if self.swap else (first, second)

    def log_scale(self, raw: Tensor, out: Tensor | None = None) -> Tensor:
        """`soft_clamp` of gain raw. tanh(x) = 2 sigmoid(2 x) - 1: torch's sigmoid takes a sixth of the time."""
        slope = 1.0 if self.clamp_form == "tanh" else 1.0 / self.clamp
        return torch.mul(raw, 2 * self.gain * slope, out=out).sigmoid_().sub_(0.5).mul_(2 * self.clamp)

    def slope(self, log_scale: Tensor) -> Tensor:
        """The derivative of that by raw, from its value c: gain k (1 - (c / bound)^2)."""
        top = self.gain * (self.clamp if self.clamp_form == "tanh" else 1.0)
        return log_scale.square().mul_(-top / self.clamp**2).add_(top)


def forward_step(
    form: CouplingForm,
    index: Tensor | None,
    affine: Sequence[Tensor],
    x: Tensor,
    output: Tensor,
    z: Tensor,
    log_scale: Tensor,
    new: Tensor,
) -> None:
    """Fills z (n, C[, l]), the log-scales and the coupling's new half (n, A[, l]) from x and the subnet's output."""
    passive, active = form.halves(x)
    raw, offset = output.chunk(2, dim=1)
    form.log_scale(raw, out=log_scale)
    torch.add(_exp(log_scale).mul_(active), offset, alpha=form.gain, out=new)
    if index is None:
        for half, filling in zip(form.halves(z), (passive, new), strict=True):
            half.copy_(filling)
        return
    u = torch.empty_like(z)
    scale, shift = (form.halves(along_channels(vector, x)) for vector in affine)
    for half, *given in zip(form.halves(u), shift, (passive, new), scale, strict=True):
        torch.addcmul(*given, out=half)
    torch.index_select(u, 1, index, out=z)


def backward_step(
    form: CouplingForm,
    inverse: Tensor | None,
    affine: Sequence[Tensor],
    gradients: tuple[Tensor, Tensor],
    x: Tensor,
    log_scale: Tensor,
    new: Tensor,
    grad_affine: Sequence[Tensor],
    grad_output: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradients of the passive half (without the subnet's) and of the active one; fills that of the output.

    Those of scale and shift are added to `grad_affine`.
    """
    passive, active = form.halves(x)
    grad_u, grad_log_det = gradients
    if inverse is not None:
        grad_u = grad_u.index_select(1, inverse)
        scale, grad_scale, grad_shift = (along_channels(vector, x) for vector in (affine[0], *grad_affine))
        grad_shift.add_(grad_u.sum_to_size(grad_shift.shape))
        for grad, grad_half, half in zip(form.halves(grad_scale), form.halves(grad_u), (passive, new), strict=True):
            grad.add_((grad_half * half).sum_to_size(grad.shape))
        grad_u.mul_(scale)
    grad_same, grad_new = form.halves(grad_u)
    grad_active = _exp(log_scale).mul_(grad_new)
    grad_raw, grad_offset = grad_output.chunk(2, dim=1)
    torch.addcmul(grad_log_det.unsqueeze(1), grad_active, active, out=grad_raw)
    grad_raw.mul_(form.slope(log_scale))
    torch.mul(grad_new, form.gain, out=grad_offset)
    return grad_same, grad_active


def along_channels(vector: Tensor, x: Tensor) -> Tensor:
    """(C) as (1, C) or (1, C, 1), to go with x."""
    return vector.view(1, -1, *(1,) * (x.dim() - 2))


def _exp(x: Tensor) -> Tensor:
    # A third of the time of torch's exp.
    return x.mul(math.log2(math.e)).exp2_()
