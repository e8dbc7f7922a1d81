"""Torch's global settings of the caller, kept out of what the library builds, fits and loads."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch


@contextmanager
def own_defaults(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Create tensors of a float type on the CPU and record gradients during the block, whatever the caller has set.

    The caller may be in `torch.no_grad` or `torch.inference_mode`, or have set another default dtype or device.

    Example:
        >>> with torch.inference_mode(), torch.device("meta"), own_defaults():
        ...     x = torch.ones(2, requires_grad=True)
        >>> x.sum().requires_grad, x.device.type, x.dtype
        (True, 'cpu', torch.float32)
    """
    before = torch.get_default_dtype()
    with ExitStack() as block:
        if torch.is_inference_mode_enabled():
            block.enter_context(torch.inference_mode(False))
        block.enter_context(torch.enable_grad())
        block.enter_context(own_device())
        if before != dtype:  # of all threads, so it is only touched if needed
            torch.set_default_dtype(dtype)
            block.callback(torch.set_default_dtype, before)
        yield


@contextmanager
def own_device() -> Iterator[None]:
    """Create tensors on the CPU during the block unless they are asked for on another device.

    Example:
        >>> with torch.device("meta"), own_device():
        ...     torch.zeros(()).device.type
        'cpu'
    """
    compiling = torch.compiler.is_compiling()
    with nullcontext() if compiling or torch.get_default_device().type == "cpu" else torch.device("cpu"):
        yield
