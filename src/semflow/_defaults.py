"""Torch's global settings of the caller, kept out of what the library builds, fits and loads, and what a GPU allows."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_blank: ContextVar[bool] = ContextVar("blank", default=False)


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


def being_captured() -> bool:
    """Return whether a CUDA graph is being captured, in which no value can be read.

    Example:
        >>> being_captured()
        False
    """
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def moved(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; from the CPU to CUDA it is copied while both go on with other work.

    Example:
        >>> moved(torch.ones(2), torch.device("cpu")).tolist()
        [1.0, 1.0]
    """
    if device.type == "cuda" and x.device.type == "cpu" and torch.cuda.is_available():
        return x.pin_memory().to(device, non_blocking=True)  # memory that is not pinned is copied after all kernels
    return x.to(device)


@contextmanager
def blank_weights() -> Iterator[None]:
    """Leave initial parameters at zero during the block: they are loaded afterwards, and drawing them takes seconds.

    Example:
        >>> with blank_weights():
        ...     layer = torch.nn.Linear(2, 2)
        >>> layer.weight.count_nonzero().item(), blank()
        (0, False)
    """
    token = _blank.set(True)
    try:
        with _Undrawn():
            yield
    finally:
        _blank.reset(token)


def blank() -> bool:
    """Return True in a block of `blank_weights`, where buffers that are loaded afterwards need no values either."""
    return _blank.get()


class _Undrawn(TorchFunctionMode):
    """Parameters are set to zero where `torch.nn.init`, or a method of theirs, would draw them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        x = args[0] if args else (kwargs or {}).get("tensor")
        if func in _DRAWS and isinstance(x, nn.Parameter):
            return x if x.is_meta else nn.init.zeros_(x)
        return func(*args, **(kwargs or {}))


_DRAWS = frozenset(
    {
        nn.init.kaiming_normal_, nn.init.kaiming_uniform_, nn.init.normal_, nn.init.orthogonal_, nn.init.trunc_normal_,
        nn.init.uniform_, nn.init.xavier_normal_, nn.init.xavier_uniform_, torch.Tensor.normal_, torch.Tensor.uniform_,
    }
)  # fmt: skip
