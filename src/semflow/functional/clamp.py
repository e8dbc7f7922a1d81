"""Soft clamps for the log-scale of a coupling; they keep a flow invertible in float32."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from semflow.errors import ConfigError

Clamp = Literal["tanh", "tanh_unit", "atan"]
"""Name of a soft clamp, see `soft_clamp`."""

CLAMPS: tuple[Clamp, ...] = get_args(Clamp)
"""All names of soft clamps."""


def soft_clamp(x: Tensor, bound: float = 1.9, form: Clamp = "tanh") -> Tensor:
    """Bound `x` to (-bound, bound) by an odd, increasing function.

    - `tanh`: bound tanh(x), slope `bound` at 0; used by FrEIA 0.2, SANFlow and CFLOW-AD
    - `tanh_unit`: bound tanh(x / bound), slope 1 at 0; used by FrEIA's development version
    - `atan`: bound 2/pi atan(x / bound), slope 2/pi at 0 and the slowest tails; used by Glow-style couplings

    Args:
        x: Tensor of any shape.
        bound: Positive bound.
        form: `tanh`, `tanh_unit` or `atan`.

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
