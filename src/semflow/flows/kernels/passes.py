"""The two passes over all locations: of a block with a subnet of locations, and of what follows any other subnet.

Images go through in groups that fit the cache and are worked on in place. What backward needs is kept (the input, the
hidden units, the log-scales and the new half), and all that is elementwise is computed again.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from semflow.flows.steps import CouplingForm, backward_step, forward_step

from .products import packed, product

__all__ = ["backward_pass", "backward_rest", "forward_pass", "forward_rest", "groups_of"]

ROWS = 1024
"""Locations of a group: enough for matrix products at full speed, few enough for the cache."""

ELEMENTS = 2**18
"""Numbers of a tile, where there are no products: the cache's measure alone."""


def forward_pass(form: CouplingForm, keep: bool, index: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """z and log_det; then log-scales and the coupling's new half, empty unless kept, and hidden units of each group."""
    x, table, weight, weight_out, bias_out, *affine = tensors
    z, log_det, kept_log_scale, kept_new = _results(x, keep, affine, len(weight_out) // 2)
    kept_hidden: list[Tensor] = []
    groups = list(groups_of(len(x), table))
    if len(groups) > 1:
        weight, weight_out = (packed(w, len(x) // len(groups)) for w in (weight, weight_out))
    for rows, part in groups:
        hidden = product(form.halves(x[rows])[0], weight)
        hidden.view(-1, *part.shape[1:]).add_(part)
        output = product(hidden.relu_(), weight_out, bias_out)
        log_scale, new = (_part(kept, rows, output) for kept in (kept_log_scale, kept_new))
        forward_step(form, index, affine, x[rows], output, z[rows], log_scale, new)
        torch.sum(log_scale, 1, out=log_det[rows])
        if keep:
            kept_hidden.append(hidden)
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
    (grad_z, grad_log_det), (kept_log_scale, kept_new, *kept_hidden) = gradients, kept
    need_x, need_table, need_weight, need_out = needs[:4]
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    grad_table, grad_bias = torch.zeros_like(table), torch.zeros_like(bias_out)
    grad_affine = [torch.zeros_like(vector) for vector in affine]
    grad_weight = grad_out = None
    for (rows, part), hidden in zip(groups_of(len(x), grad_table), kept_hidden, strict=True):
        given = (grad_z[rows], grad_log_det[rows]), x[rows], kept_log_scale[rows], kept_new[rows]
        grad_output = x.new_empty(len(hidden), len(bias_out))
        grad_same, grad_active = backward_step(form, inverse, affine, *given, grad_affine, grad_output)
        grad_hidden = product(grad_output, weight_out.T)
        _relu_backward(grad_hidden, hidden, 0, grad_input=grad_hidden)
        grad_bias.add_(grad_output.sum(0))
        if need_x:
            grad_passive, rest = form.halves(grad_x[rows])
            torch.add(product(grad_hidden, weight.T), grad_same, out=grad_passive)
            rest.copy_(grad_active)
        if need_table:
            part.add_(grad_hidden.view(-1, *part.shape[1:]).sum_to_size(part.shape))
        if need_weight:
            grad_weight = _plus_product(grad_weight, grad_hidden.T, form.halves(x[rows])[0])
        if need_out:
            grad_out = _plus_product(grad_out, grad_output.T, hidden)
    if not len(x):  # of no image there is no group that makes a sum
        grad_weight = torch.zeros_like(weight) if need_weight else None
        grad_out = torch.zeros_like(weight_out) if need_out else None
    weights = (x.new_empty(0) if grad is None else grad for grad in (grad_weight, grad_out))
    return grad_x, grad_table, *weights, grad_bias, *grad_affine


def forward_rest(form: CouplingForm, keep: bool, index: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """`forward_pass` from what the subnet gave: of x (N, C) or (B, C, L), output and affine."""
    x, output, *affine = tensors
    z, log_det, kept_log_scale, kept_new = _results(x, keep, affine, output.shape[1] // 2)
    for tile in _tiles(x):
        log_scale, new = (_part(kept, tile, output[tile]) for kept in (kept_log_scale, kept_new))
        forward_step(form, index, affine, x[tile], output[tile], z[tile], log_scale, new)
        torch.sum(log_scale, 1, out=log_det[tile[0], *tile[2:]])
    return z, log_det, kept_log_scale, kept_new


def backward_rest(
    form: CouplingForm,
    needs: Sequence[bool],
    inverse: Tensor | None,
    gradients: tuple[Tensor, Tensor],
    kept: Sequence[Tensor],
    *tensors: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients of x (empty where not needed), output and affine."""
    x, output, *affine = tensors
    (grad_z, grad_log_det), (kept_log_scale, kept_new) = gradients, kept
    grad_x, grad_output = torch.empty_like(x) if needs[0] else x.new_empty(0), torch.empty_like(output)
    grad_affine = [torch.zeros_like(vector) for vector in affine]
    for tile in _tiles(x):
        grads = grad_z[tile], grad_log_det[tile[0], *tile[2:]]
        given = grads, x[tile], kept_log_scale[tile], kept_new[tile]
        halves = backward_step(form, inverse, affine, *given, grad_affine, grad_output[tile])
        if needs[0]:
            for half, filling in zip(form.halves(grad_x[tile]), halves, strict=True):
                half.copy_(filling)
    return grad_x, grad_output, *grad_affine


def groups_of(locations: int, table: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of whole images, and the part of the table that belongs to them."""
    places = table.shape[1]
    images = max(1, ROWS // places)
    for number, rows in enumerate(_slices(locations, images * places)):
        yield rows, table[number * images : (number + 1) * images] if len(table) > 1 else table


def _tiles(x: Tensor) -> list[tuple[slice, ...]]:
    """(N, C) in parts of several rows; (B, C, L) in parts of several images, or of an image's locations."""
    rows = _slices(len(x), max(1, ELEMENTS // max(1, x[:1].numel())))
    if x.dim() == 2:
        return [(part,) for part in rows]
    locations = list(_slices(x.shape[2], max(1, ELEMENTS // x.shape[1])))
    return [(images, slice(None), part) for images in rows for part in locations]


def _slices(locations: int, length: int) -> Iterator[slice]:
    return (slice(first, first + length) for first in range(0, locations, length))


def _results(x: Tensor, keep: bool, affine: Sequence[Tensor], width: int) -> tuple[Tensor, ...]:
    # z, log_det, log-scales and new halves, to be filled. The coupling's new half is z itself without an affine.
    kept = len(x) if keep else 0
    places = x.shape[2:]
    log_scale, new = x.new_empty(kept, width, *places), x.new_empty(kept, width if affine else 0, *places)
    return torch.empty_like(x), x.new_empty(len(x), *places), log_scale, new


def _part(kept: Tensor, rows: Any, output: Tensor) -> Tensor:
    """Where a group's values (n, A[, l]) are kept, or memory for them in passing."""
    return kept[rows] if kept.numel() else output.new_empty(len(output), output.shape[1] // 2, *output.shape[2:])


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    # The first product makes the sum: zeros to start from would cost two passes over the weights.
    return product(a, b.contiguous().T) if total is None else total.addmm_(a, b)


_relu_backward = torch.ops.aten.threshold_backward.grad_input
