"""Standardization of features by constants of the training data."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from semflow._validation import at_least, checked
from semflow.errors import DataError, ShapeError
from semflow.functional.inverse_gamma import narrow, wide
from semflow.nn import Context

from .base import Flow, Result, check_channels
from .mixing import constant_log_det


class ChannelMoments:
    """Running mean and sum of squared deviations of each channel over feature maps, in float64."""

    def __init__(self, channels: int, device: torch.device | None = None) -> None:
        self.count = 0
        self.mean = wide(torch.zeros(channels, device=device))
        self.squares = torch.zeros_like(self.mean)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add feature maps (B, C, H, W)."""
        check_channels(x, len(self.mean))
        x = wide(x)
        n = x.numel() // x.shape[1]
        if not n:
            return
        delta = x.mean((0, 2, 3)) - self.mean
        # Chan's update, in which sums of squares about the running mean do not cancel.
        self.squares += x.var((0, 2, 3), correction=0) * n + delta.square() * (self.count * n / (self.count + n))
        self.mean += delta * (n / (self.count + n))
        self.count += n

    def merge(self, other: "ChannelMoments") -> None:
        """Add the moments of other maps; for single maps the result equals that of `update` bit for bit."""
        if not other.count:
            return
        total = self.count + other.count
        delta = other.mean.to(self.mean) - self.mean
        self.squares += other.squares.to(self.mean) + delta.square() * (self.count * other.count / total)
        self.mean += delta * (other.count / total)
        self.count = total

    def __getstate__(self) -> dict[str, Any]:
        """Return the state on the CPU, since another process may use another device."""
        return {"count": self.count, "mean": self.mean.cpu(), "squares": self.squares.cpu()}


class Standardize(Flow):
    """Standardization of each channel over the training data, z = (x - m) / s with log_det = -sum_c log s.

    The constants are fitted once. Their log-det is included, so the likelihood is that of the raw features.

    Args:
        channels: C.
        floor: Smallest standard deviation, relative to the median over channels that are not dead, so that dead
            channels are not amplified.

    Example:
        >>> x = 3 + 2 * torch.randn(4, 8, 16, 16)
        >>> flow = Standardize(8).fit([x])
        >>> z, log_det = flow(x)
        >>> round(z.std().item(), 2), round(log_det[0, 0, 0].item() / 8, 1)
        (1.0, -0.7)
    """

    mean: Tensor
    std: Tensor

    @checked
    def __init__(self, channels: int, floor: float = 1e-2) -> None:
        super().__init__()
        at_least(1, channels=channels)
        at_least(0, floor=floor)
        self.channels, self.floor = channels, floor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def fit(self, features: Iterable[Tensor]) -> "Standardize":
        """Compute the constants from feature maps (B, C, H, W) in one pass, and return the flow.

        Raises:
            DataError: If a feature is not finite.
        """
        moments = self.moments()
        for x in features:
            moments.update(x)
        return self.set_moments(moments)

    def moments(self) -> "ChannelMoments":
        """Return empty moments for the channels of this flow."""
        return ChannelMoments(self.channels, self.mean.device)

    @torch.no_grad()
    def set_moments(self, moments: "ChannelMoments") -> "Standardize":
        """Set the constants from moments of at least one feature map, and return the flow."""
        if not moments.count:
            raise ShapeError("features must contain at least one feature map (B, C, H, W), but got none")
        std = (moments.squares / moments.count).sqrt()
        if not std.isfinite().all():
            raise DataError("features must be finite, but got inf or NaN")
        # Dead channels, whose deviation is rounding, are left out of the median, since they may be the majority.
        alive = std[std > 1e-6 * torch.maximum(std.max(), moments.mean.abs())]
        self.mean.copy_(moments.mean)
        self.std.copy_(std.clamp(min=self.floor * alive.median()) if len(alive) else torch.ones_like(std))
        return self

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """Standardize the channels."""
        check_channels(x, self.channels)
        z = (x - self.mean[:, None, None]) / self.std[:, None, None]
        return z, constant_log_det(x, -torch.log(narrow(self.std, self.std)).sum())

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """Map back to the units of the features."""
        check_channels(z, self.channels)
        return z * self.std[:, None, None] + self.mean[:, None, None]
