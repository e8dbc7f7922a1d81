"""From log-probabilities per scale to an anomaly map and an image score."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError

__all__ = ["Scorer"]


class Scorer(nn.Module):
    """The anomaly map 1 - 1/K sum_k exp(l_k - c_k), and an image score from it (SANFlow, section 3.6).

    l_k is the log-probability per dimension at scale k, upsampled bilinearly after the exponential. c_k is its maximum
    over the normal training images, taken once by `calibrate` and stored: a score never depends on what else is scored
    with it. The exponential keeps one scale's outliers from drowning the others. The map is near 0 at the most typical
    training location and tends to 1 where no scale finds it likely.

    Args:
        scales: K.
        top: the image score is the mean of this fraction of the map's highest pixels; 0 means their maximum.
        aggregate: `exp` as above, or `sum`, -1/K sum_k (l_k - c_k), which is not bounded.

    Example:
        >>> scorer = Scorer(scales=2)
        >>> anomaly_map = scorer([torch.randn(3, 8, 8), torch.randn(3, 4, 4)], (32, 32))
        >>> anomaly_map.shape, scorer.image_score(anomaly_map).shape
        (torch.Size([3, 32, 32]), torch.Size([3]))
    """

    offsets: Tensor
    map_bounds: Tensor

    def __init__(self, scales: int, top: float = 0.01, aggregate: Literal["exp", "sum"] = "exp") -> None:
        super().__init__()
        if not 0 <= top <= 1:
            raise ConfigError(f"top must be a fraction of the pixels in [0, 1], but got {top}")
        if aggregate not in ("exp", "sum"):
            raise ConfigError(f"aggregate must be exp or sum, but got {aggregate!r}")
        self.top, self.aggregate = top, aggregate
        self.register_buffer("offsets", torch.zeros(scales))
        self.register_buffer("map_bounds", torch.tensor([0.0, 1.0]))

    def forward(self, log_probs: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Log-probabilities per dimension, K times (B, H_k, W_k), to the anomaly map (B, H, W)."""
        total = torch.zeros((), device=log_probs[0].device)
        for log_prob, offset in zip(log_probs, self.offsets, strict=True):
            typical = log_prob.float() - offset
            if self.aggregate == "exp":
                # A location more likely than any of training must not overflow, and it is not "more than normal".
                typical = torch.exp(typical.clamp(max=1.0))
            total = total + F.interpolate(typical[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
        mean = total / len(log_probs)
        return 1 - mean if self.aggregate == "exp" else -mean

    def image_score(self, anomaly_map: Tensor) -> Tensor:
        """(B, H, W) to (B,): the mean of the top fraction of the pixels, or the maximum."""
        pixels = anomaly_map.flatten(1)
        return pixels.topk(max(1, round(self.top * pixels.shape[1])), dim=1).values.mean(1)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{len(self.offsets)}, top={self.top}, aggregate={self.aggregate}"
