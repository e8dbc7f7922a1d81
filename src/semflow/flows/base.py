"""Base class of flows."""

from typing import Literal, cast, get_args

from torch import Tensor, nn

from semflow.errors import ConfigError, ShapeError
from semflow.nn import Context

Event = Literal["location", "sample"]
"""Scope of a log-det: each location, or the whole sample."""

Result = tuple[Tensor, Tensor]
"""The pair (z, log_det)."""


class Flow(nn.Module):
    """Invertible map of a feature map to latents of the same shape.

    `z, log_det = flow(x, context)` with x, z of shape (B, C, H, W) and `log_det = log |dz/dx|` in float32 or float64;
    `x = flow.inverse(z, context)`. A flow declares its `event`:

    - `"location"`: z at a location depends on x at that location alone; `log_det` is (B, H, W).
    - `"sample"`: locations are mixed; `log_det` is (B,).

    `channels` is C, or 0 for any number of channels. Any `nn.Module` with this interface may replace a `Flow`; check it
    with `semflow.testing.check_flow`.

    Example:
        >>> import math
        >>> import torch
        >>> class Doubling(Flow):
        ...     def forward(self, x, context=None):
        ...         return 2 * x, torch.full_like(x[:, 0], x.shape[1] * math.log(2))
        ...     def inverse(self, z, context=None):
        ...         return z / 2
        >>> [tuple(result.shape) for result in Doubling()(torch.randn(2, 4, 3, 5))]
        [(2, 4, 3, 5), (2, 3, 5)]
    """

    event: Event = "location"
    channels: int = 0

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """Map features (B, C, H, W), with a context if the flow takes one, to (z, log_det)."""
        raise TypeError(f"{type(self).__name__} must define forward(x, context), but got a class without it")

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """Map latents (B, C, H, W) back to features."""
        raise TypeError(f"{type(self).__name__} must define inverse(z, context), but got a class without it")

    def extra_repr(self) -> str:
        """Return the channels, if the flow declares them, to be shown by `repr`."""
        return str(self.channels or "")


def check_channels(x: Tensor, channels: int) -> None:
    """Raise ShapeError if `x` is not (B, channels, H, W)."""
    if x.dim() != 4 or x.shape[1] != channels:
        raise ShapeError(f"x must be (B, {channels}, H, W), but got {tuple(x.shape)}")


def check_event(flow: nn.Module, name: str) -> Event:
    """Return the declared event of a flow; raise ConfigError if it is missing."""
    event = getattr(flow, "event", None)
    if event not in get_args(Event):
        raise ConfigError(
            f"{name} ({type(flow).__name__}) must declare event as 'location' or 'sample', but got {event!r}"
        )
    return cast(Event, event)
