"""Torch's global settings of the caller, kept out of what the library builds, fits and loads."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
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
    """Parameters become zero where `torch.nn.init`, or a method of theirs, would draw them.

    The system hands out zeros when a page is first used, so those of large parameters cost nothing until they are
    loaded.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        x = args[0] if args else (kwargs or {}).get("tensor")
        if func in _DRAWS and isinstance(x, nn.Parameter):
            if x.is_meta:
                return x
            if not (x.device.type == "cpu" and x.is_contiguous() and x.numel()):
                return nn.init.zeros_(x)
            x.data = _zeros(x)
            return x
        return func(*args, **(kwargs or {}))


def _zeros(like: Tensor) -> Tensor:
    """Return zeros of contiguous memory that is not written to, aligned like torch's."""
    memory = np.zeros(like.nbytes + _ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % _ALIGNMENT
    return torch.frombuffer(memory, dtype=like.dtype, count=like.numel(), offset=offset).view(like.shape)


_ALIGNMENT = 64
_DRAWS = frozenset(
    {
        nn.init.kaiming_normal_, nn.init.kaiming_uniform_, nn.init.normal_, nn.init.orthogonal_, nn.init.trunc_normal_,
        nn.init.uniform_, nn.init.xavier_normal_, nn.init.xavier_uniform_, torch.Tensor.normal_, torch.Tensor.uniform_,
    }
)  # fmt: skip
