"""Soft clamps of a coupling's log-scale, which keep a flow invertible in float32."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from semflow.errors import ConfigError

__all__ = ["CLAMPS", "Clamp", "soft_clamp"]


Clamp = Literal["tanh", "tanh_unit", "atan"]
CLAMPS: tuple[Clamp, ...] = get_args(Clamp)


def soft_clamp(x: Tensor, bound: float = 1.9, form: Clamp = "tanh") -> Tensor:
    """`x` softly bounded to (-bound, bound), odd and increasing.

    - `tanh`       bound tanh(x): slope `bound` at 0; the coupling blocks of FrEIA 0.2, which SANFlow and CFLOW-AD use
    - `tanh_unit`  bound tanh(x / bound): slope 1 at 0; FrEIA's development version
    - `atan`       bound 2/pi atan(x / bound): slope 2/pi at 0 and the slowest tails; Glow-style couplings

    Args:
        x: any shape.
        bound: positive.
        form: one of the three.

    Returns:
        Same shape and dtype.

    Raises:
        ConfigError: `form` is none of the three.

    Example:
        >>> soft_clamp(torch.tensor([-1e6, 0.0, 1e6])).tolist()
        [-1.89..., 0.0, 1.89...]
    """
    if form == "tanh":
        return bound * torch.tanh(x)
    if form == "tanh_unit":
        return bound * torch.tanh(x / bound)
    if form == "atan":
        return bound * (2 / math.pi) * torch.atan(x / bound)
    raise ConfigError(f"form must be one of {', '.join(CLAMPS)}, but got {form!r}")
