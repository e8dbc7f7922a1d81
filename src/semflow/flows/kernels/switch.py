"""The switch of the fused kernels."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from semflow.errors import ConfigError

VARIABLE = "SEMFLOW_FUSED_KERNELS"

if (_value := os.environ.get(VARIABLE, "1")) not in ("0", "1"):
    raise ConfigError(f"{VARIABLE} must be 0 or 1, but got {_value!r}")
_enabled = _value == "1"


def enabled() -> bool:
    """Return whether the kernels are turned on."""
    return _enabled


@contextmanager
def fused_kernels(enabled: bool) -> Iterator[None]:
    """Turn the fused CPU kernels of coupling blocks on or off within a `with` block, in all threads of the process.

    The kernels compute the same numbers as plain operators, up to rounding, in less time and memory. They are on by
    default and never used on GPUs. The environment variable `SEMFLOW_FUSED_KERNELS=0` turns them off for a process.

    Example:
        >>> with fused_kernels(False):
        ...     enabled()
        False
    """
    global _enabled
    before, _enabled = _enabled, enabled
    try:
        yield
    finally:
        _enabled = before
