"""What a flow is."""

from typing import Literal

from torch import Tensor, nn

from semflow.errors import ConfigError, ShapeError
from semflow.nn import Context

__all__ = ["Event", "Flow", "Result", "check_channels", "check_clamp"]

Event = Literal["location", "sample"]
"""Over what a log-det is taken: each location by itself, or the sample as a whole."""

Result = tuple[Tensor, Tensor]


class Flow(nn.Module):
    """An invertible map of a feature map to latents of the same shape.

    `z, log_det = flow(x, context)` with x and z of shape (B, C, H, W) and `log_det = log |dz/dx|` in float32 or better;
    `x = flow.inverse(z, context)`. `event` is declared, never inferred from a shape:

    - `"location"`: z at a location depends on x at that location alone; `log_det` is (B, H, W);
    - `"sample"`: locations are mixed; `log_det` is (B,).

    Any `nn.Module` that keeps this may take the place of a `Flow`; `semflow.testing.check_flow` tells whether it does.

    Example:
        >>> import math
        >>> import torch
        >>> class Doubling(Flow):
        ...     def forward(self, x, context=None):
        ...         return 2 * x, torch.full_like(x[:, 0], x.shape[1] * math.log(2))
        ...     def inverse(self, z, context=None):
        ...         return z / 2
        >>> z, log_det = Doubling()(torch.randn(2, 4, 3, 5))
        >>> z.shape, log_det.shape
        (torch.Size([2, 4, 3, 5]), torch.Size([2, 3, 5]))
    """

    event: Event = "location"

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """Features to latents: (z, log_det)."""
        raise TypeError(f"{type(self).__name__} must define forward(x, context), which gives (z, log_det)")

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """Latents back to features."""
        raise TypeError(f"{type(self).__name__} must define inverse(z, context)")


def check_channels(x: Tensor, channels: int) -> None:
    """Refuse a map of another number of channels.

    Raises:
        ShapeError: `x` is not (B, channels, H, W).
    """
    if x.dim() != 4 or x.shape[1] != channels:
        raise ShapeError(f"x must be (B, {channels}, H, W), but got {tuple(x.shape)}")


def check_clamp(clamp: float) -> None:
    """Refuse a bound of log-scales that leaves them no room.

    Raises:
        ConfigError: `clamp` is not positive.
    """
    if not clamp > 0:
        raise ConfigError(f"clamp must be a positive bound of the log-scales, but got {clamp}")
