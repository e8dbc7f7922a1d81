"""Copies to a GPU that the host does not wait for, and graphs in which values cannot be read."""

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; the host does not wait until a GPU has finished its earlier work.

    Example:
        >>> to_device(torch.ones(2), torch.device("cpu"))
        tensor([1., 1.])
    """
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    x = x.clone() if x.is_pinned() else x  # the caller may write into it before the GPU has read it
    return x.pin_memory().to(device, non_blocking=True)


def is_traced() -> bool:
    """Return True while a graph is being compiled or exported, in which values are not known.

    Example:
        >>> is_traced()
        False
    """
    return torch.compiler.is_compiling() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def is_exported() -> bool:
    """Return True while a graph is being exported to a file, whose runtime is fastest with convolutions of maps.

    Example:
        >>> is_exported()
        False
    """
    # torch before 2.7 does not distinguish an export from other compilations.
    exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return bool(exporting())


def is_readable(x: Tensor) -> bool:
    """Return whether the values of a tensor can be read: not of `meta`, nor while a graph is traced or captured.

    Example:
        >>> is_readable(torch.ones(2)), is_readable(torch.ones(2, device="meta"))
        (True, False)
    """
    if is_traced() or x.is_meta:
        return False
    return not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
