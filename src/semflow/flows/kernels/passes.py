"""Forward and backward passes of the kernels over groups of locations.

A forward pass returns z, log_det, and what backward needs: the log-scales and the new active half, which are empty if
gradients are not needed, and for `location` the hidden units of each group.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .steps import CouplingForm, backward_step, forward_step

ROWS = 1024
"""Locations per group of `location`, enough for fast matrix products and few enough for the cache."""

ELEMENTS = 2**18
"""Numbers per group of `elementwise`, as many as fit into the cache."""


def location_forward(form: CouplingForm, keep: bool, index: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Compute a block with a `LocationSubnet`; for the tensors see `autograd.location_composition`."""
    x, table, weight, weight_out, bias_out, scale, shift = tensors
    z, log_det, kept_log_scale, kept_new = _results(x, keep, len(weight_out) // 2)
    kept_hidden: list[Tensor] = []
    for rows, part in location_groups(len(x), table):
        hidden = _product(form.halves(x[rows])[0], weight)
        hidden.view(-1, *part.shape[1:]).add_(part)
        output = _product(hidden.relu_(), weight_out, bias_out)
        log_scale, new = (_part(kept, rows, output) for kept in (kept_log_scale, kept_new))
        forward_step(form, index, (scale, shift), x[rows], output, z[rows], log_scale, new)
        torch.sum(log_scale, 1, out=log_det[rows])
        if keep:
            kept_hidden.append(hidden)
    return z, log_det, kept_log_scale, kept_new, *kept_hidden


def location_backward(
    form: CouplingForm,
    needs: Sequence[bool],
    inverse: Tensor,
    gradients: tuple[Tensor, Tensor],
    kept: Sequence[Tensor],
    *tensors: Tensor,
) -> tuple[Tensor, ...]:
    """Compute the gradients of all tensors; those of x, table and weights are empty or zero if not needed."""
    x, table, weight, weight_out, bias_out, scale, shift = tensors
    (grad_z, grad_log_det), (kept_log_scale, kept_new, *kept_hidden) = gradients, kept
    need_x, need_table, need_weight, need_out = needs[:4]
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    grad_table, grad_bias = torch.zeros_like(table), torch.zeros_like(bias_out)
    grad_affine = torch.zeros_like(scale), torch.zeros_like(shift)
    grad_weight = grad_out = None
    for (rows, part), hidden in zip(location_groups(len(x), grad_table), kept_hidden, strict=True):
        given = (grad_z[rows], grad_log_det[rows]), x[rows], kept_log_scale[rows], kept_new[rows]
        grad_output = x.new_empty(len(hidden), len(bias_out))
        grad_same, grad_active = backward_step(form, inverse, scale, *given, grad_affine, grad_output)
        grad_hidden = _product(grad_output, weight_out.T)
        _relu_backward(grad_hidden, hidden, 0, grad_input=grad_hidden)
        grad_bias.add_(grad_output.sum(0))
        if need_x:
            grad_passive, rest = form.halves(grad_x[rows])
            torch.add(_product(grad_hidden, weight.T), grad_same, out=grad_passive)
            rest.copy_(grad_active)
        if need_table:
            part.add_(grad_hidden.view(-1, *part.shape[1:]).sum_to_size(part.shape))
        if need_weight:
            grad_weight = _plus_product(grad_weight, grad_hidden.T, form.halves(x[rows])[0])
        if need_out:
            grad_out = _plus_product(grad_out, grad_output.T, hidden)
    if not len(x):  # an empty batch is not split into groups
        grad_weight = torch.zeros_like(weight) if need_weight else None
        grad_out = torch.zeros_like(weight_out) if need_out else None
    weights = (x.new_empty(0) if grad is None else grad for grad in (grad_weight, grad_out))
    return grad_x, grad_table, *weights, grad_bias, *grad_affine


def elementwise_forward(form: CouplingForm, keep: bool, index: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Compute a block from the output of its subnet; for the tensors see `autograd.elementwise_composition`."""
    x, output, scale, shift = tensors
    z, log_det, kept_log_scale, kept_new = _results(x, keep, output.shape[1] // 2)
    for tile in _tiles(x):
        log_scale, new = (_part(kept, tile, output[tile]) for kept in (kept_log_scale, kept_new))
        forward_step(form, index, (scale, shift), x[tile], output[tile], z[tile], log_scale, new)
        torch.sum(log_scale, 1, out=log_det[tile[0], *tile[2:]])
    return z, log_det, kept_log_scale, kept_new


def elementwise_backward(
    form: CouplingForm,
    needs: Sequence[bool],
    inverse: Tensor,
    gradients: tuple[Tensor, Tensor],
    kept: Sequence[Tensor],
    *tensors: Tensor,
) -> tuple[Tensor, ...]:
    """Compute the gradients of all tensors; that of x is empty if not needed."""
    x, output, scale, shift = tensors
    (grad_z, grad_log_det), (kept_log_scale, kept_new) = gradients, kept
    grad_x, grad_output = torch.empty_like(x) if needs[0] else x.new_empty(0), torch.empty_like(output)
    grad_affine = torch.zeros_like(scale), torch.zeros_like(shift)
    for tile in _tiles(x):
        grads = grad_z[tile], grad_log_det[tile[0], *tile[2:]]
        given = grads, x[tile], kept_log_scale[tile], kept_new[tile]
        halves = backward_step(form, inverse, scale, *given, grad_affine, grad_output[tile])
        if needs[0]:
            for half, filling in zip(form.halves(grad_x[tile]), halves, strict=True):
                half.copy_(filling)
    return grad_x, grad_output, *grad_affine


def location_groups(locations: int, table: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of groups of whole images with their part of the table."""
    places = table.shape[1]
    images = max(1, ROWS // places)
    for number, rows in enumerate(_slices(locations, images * places)):
        yield rows, table[number * images : (number + 1) * images] if len(table) > 1 else table


def _tiles(x: Tensor) -> list[tuple[slice, ...]]:
    """Split (N, C) into groups of rows, and (B, C, L) into groups of images or of the locations of an image."""
    rows = _slices(len(x), max(1, ELEMENTS // max(1, x[:1].numel())))
    if x.dim() == 2:
        return [(part,) for part in rows]
    locations = list(_slices(x.shape[2], max(1, ELEMENTS // x.shape[1])))
    return [(images, slice(None), part) for images in rows for part in locations]


def _slices(total: int, length: int) -> Iterator[slice]:
    return (slice(first, first + length) for first in range(0, total, length))


def _results(x: Tensor, keep: bool, width: int) -> tuple[Tensor, ...]:
    """Allocate z, log_det, log-scales and new active half."""
    places = x.shape[2:]
    kept = (x.new_empty(len(x) if keep else 0, width, *places) for _ in range(2))
    return torch.empty_like(x), x.new_empty(len(x), *places), *kept


def _part(kept: Tensor, rows: Any, output: Tensor) -> Tensor:
    """Return the part of a kept tensor for a group, or temporary memory if nothing is kept."""
    return kept[rows] if kept.numel() else output.new_empty(len(output), output.shape[1] // 2, *output.shape[2:])


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    # The first product makes the sum, which saves filling it with zeros.
    return _product(a, b.contiguous().T) if total is None else total.addmm_(a, b)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `F.linear`, by oneDNN on AMD processors with AVX-512, where it is a tenth faster than MKL.

    `F.linear` always calls MKL, and oneDNN's float32 product has no public name. Where the CPU has AVX2 only, MKL is
    faster. oneDNN is slow for a weight that is neither contiguous nor the transpose of a contiguous matrix.
    """
    if (
        _onednn is not None
        and weight.dtype == torch.float32
        and (weight.is_contiguous() or weight.T.is_contiguous())
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
    ):
        result: Tensor = _onednn(x, weight, bias, "none", [], "")
        return result
    return F.linear(x, weight, bias)


_onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_relu_backward = torch.ops.aten.threshold_backward.grad_input
