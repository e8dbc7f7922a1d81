"""Copies to a GPU that the host does not wait for, and what a CUDA graph forbids."""

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
    return x.pin_memory().to(device, non_blocking=True)


def being_captured() -> bool:
    """Return whether a CUDA graph is being captured, in which no value can be read.

    Example:
        >>> being_captured()
        False
    """
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
