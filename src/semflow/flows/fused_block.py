"""Blocks of coupling, global affine and hard permutation that run as one CPU kernel, and the switch of the kernels."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from semflow._devices import is_exported
from semflow.errors import ConfigError
from semflow.functional import from_locations, to_locations
from semflow.nn import Context, ConvSubnet, LocationSubnet

from .base import Event, Result, check_channels
from .coupling import AffineCoupling
from .kernels import ELEMENTWISE, LOCATION, CouplingForm, apply
from .mixing import GlobalAffine, HardPermutation

LARGE = 2**19
"""Numbers per image of a map from which convolutions are faster with channels last."""

VARIABLE = "SEMFLOW_FUSED_KERNELS"

if (_value := os.environ.get(VARIABLE, "1")) not in ("0", "1"):
    raise ConfigError(f"{VARIABLE} must be 0 or 1, but got {_value!r}")
_enabled = _value == "1"


@contextmanager
def fused_kernels(enabled: bool) -> Iterator[None]:
    """Turn the fused CPU kernels of coupling blocks on or off within a `with` block, in all threads of the process.

    The kernels compute the same numbers as plain operators, up to rounding, in less time and memory. They are on by
    default and never used on GPUs. The environment variable `SEMFLOW_FUSED_KERNELS=0` turns them off for a process.

    Example:
        >>> from semflow.flows import coupling_stack
        >>> with fused_kernels(False):
        ...     z, log_det = coupling_stack(4, blocks=2)(torch.randn(1, 4, 2, 2))
    """
    global _enabled
    before, _enabled = _enabled, enabled
    try:
        yield
    finally:
        _enabled = before


class FusedBlock(NamedTuple):
    """Three flows as one."""

    coupling: AffineCoupling
    affine: GlobalAffine
    permutation: HardPermutation

    @property
    def event(self) -> Event:
        """Event of the coupling."""
        return self.coupling.event

    def __call__(self, x: Tensor, context: Context = None) -> Result:
        """Map x like the three flows."""
        coupling, permutation = self.coupling, self.permutation
        check_channels(x, coupling.channels)
        net, size = coupling.subnet, (x.shape[2], x.shape[3])
        form = CouplingForm(coupling.sizes, coupling.swap, coupling.gain, coupling.clamp, coupling.clamp_form)
        scale = self.affine.scale()
        tensors: tuple[Tensor, ...]
        if isinstance(net, LocationSubnet):
            tensors = (to_locations(x), net.table(x, context), net.weight_x, net.output.weight, net.output.bias)
            kernel = LOCATION
        else:
            # Large images become rows of locations, which convolutions read without a copy. Smaller ones stay channel
            # by channel, where a permutation moves whole planes.
            rows = x.shape[1:].numel() >= LARGE
            x = x.contiguous(memory_format=torch.channels_last if rows else torch.contiguous_format)
            flat = to_locations if rows else partial(torch.flatten, start_dim=2)
            tensors = flat(x), flat(net(coupling.halves(x)[0], context))
            kernel = ELEMENTWISE
        index = permutation.index, permutation.inverse_index
        z, log_det = apply(kernel, form, *index, *tensors, scale, self.affine.shift)
        log_det = (log_det + torch.log(scale).sum()).view(len(x), *size)
        z = from_locations(z, size) if z.dim() == 2 else z.unflatten(2, size)
        return z, log_det if self.event == "location" else log_det.sum((1, 2))


def find_block(flows: Sequence[nn.Module], x: Tensor) -> FusedBlock | None:
    """Return three flows as a block if a kernel gives the same result for x, otherwise None.

    The kernels need a CPU, and plain operators are required under autocast, for export, and if a module has hooks.
    """
    if not _enabled or [type(flow) for flow in flows] != [AffineCoupling, GlobalAffine, HardPermutation]:
        return None
    block = FusedBlock(*cast(Any, flows))
    coupling, subnet = block.coupling, block.coupling.subnet
    if isinstance(subnet, LocationSubnet):
        modules = (*flows, subnet, subnet.output)
        plain = type(subnet) is LocationSubnet and type(subnet.output) is nn.Linear
    else:
        modules = tuple(flows)
        plain = type(subnet) is ConvSubnet and not torch.compiler.is_compiling()  # inductor fuses what follows
    fusible = (
        plain
        and coupling.channels == block.affine.channels == block.permutation.channels
        and coupling.clamp_form != "atan"
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not is_exported()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules
        )
    )
    return block if fusible else None
