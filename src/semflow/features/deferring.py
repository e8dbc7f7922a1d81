"""The import of torch's compiler, put off until something is compiled: it takes more than a second.

timm, torchvision and torch itself take functions from it that do nothing before that.
"""

import functools
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

COMPILER = "torch._dynamo"
UTILS = f"{COMPILER}.utils"


@contextmanager
def deferred_compiler() -> Iterator[None]:
    """Do not import `torch._dynamo` during the block unless more of it is used than timm and torchvision do.

    Example:
        >>> import torch
        >>> with deferred_compiler():
        ...     negative = torch.compiler.disable(lambda x: -x)
        >>> negative(3)
        -3
    """
    if COMPILER in sys.modules:
        yield
        return
    sys.modules.update({name: _StandIn(name) for name in (COMPILER, UTILS)})
    try:
        yield
    finally:
        _remove()


class _StandIn(ModuleType):
    """Module in the place of one that is imported when anything but two functions is taken from it."""

    def __getattr__(self, name: str) -> Any:
        if (self.__name__, name) == (COMPILER, "disable"):
            return _disable
        if (self.__name__, name) == (UTILS, "is_compile_supported"):
            return _is_compile_supported
        if name.startswith("__") and (self.__name__, name) != (COMPILER, "__path__"):  # inspect asks all for a file
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


def _real(name: str) -> Any:
    _remove()
    return importlib.import_module(name)


def _remove() -> None:
    for name in (COMPILER, UTILS):
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


def _disable(function: Any = None, *args: Any, **options: Any) -> Any:
    """Return what `torch._dynamo.disable` does; a plain function can wait for the compiler."""
    if not isinstance(function, FunctionType) or args not in ((), (True,)):
        return _real(COMPILER).disable(function, *args, **options)

    @functools.wraps(function)
    def call(*inputs: Any, **named: Any) -> Any:
        compiler = sys.modules.get(COMPILER)
        waits = compiler is None or isinstance(compiler, _StandIn)
        return (function if waits else _real(COMPILER).disable(function))(*inputs, **named)

    call.__dict__["_torchdynamo_disable"] = True  # as the compiler marks its own
    return call


def _is_compile_supported(device_type: Any) -> Any:
    return _real(UTILS).is_compile_supported(device_type)
