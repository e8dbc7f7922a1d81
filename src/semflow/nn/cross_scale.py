"""Subnets of couplings across scales; they map a list of maps, fine to coarse, to another list."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow._validation import at_least, checked
from semflow.errors import ConfigError

CrossScaleSubnetFactory = Callable[[Sequence[int], Sequence[int]], nn.Module]
"""Callable `factory(in_channels, out_channels)`, with one number per scale, that makes the subnet of a coupling."""


class ChannelNorm(nn.LayerNorm):
    """Layer normalization over the channels of each location of a map (B, C, H, W), with a learned affine.

    Example:
        >>> ChannelNorm(8)(torch.randn(2, 8, 4, 4)).mean(1).abs().max().item() < 1e-5
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize a map (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class CrossScaleConvs(nn.Module):
    """Convolutions that connect each scale with its two neighbors, the subnet of CS-Flow (Rudolph et al., WACV 2022).

    h_k = leaky(conv x_k); y_k = g_k (conv h_k + conv up(h_(k+1)) + conv down(h_(k-1))), with a learned factor g_k that
    starts at zero, so that a coupling starts as the identity.

    Args:
        in_channels: Channels of each input, fine to coarse; each scale has about half the size of the previous one.
        out_channels: Channels of each output.
        hidden: Channels of h.
        kernel: Odd size of all kernels.

    Example:
        >>> subnet = CrossScaleConvs((3, 4), (6, 8), hidden=16)
        >>> [y.shape for y in subnet([torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4)])]
        [torch.Size([2, 6, 8, 8]), torch.Size([2, 8, 4, 4])]
    """

    @checked
    def __init__(
        self, in_channels: Sequence[int], out_channels: Sequence[int], hidden: int = 1024, kernel: int = 3
    ) -> None:
        super().__init__()
        if kernel % 2 == 0 or kernel < 1:
            raise ConfigError(f"kernel must be odd, so that maps keep their sizes, but got {kernel}")
        at_least(1, hidden=hidden)

        def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)

        self.first = nn.ModuleList(conv(c, hidden) for c in in_channels)
        self.same = nn.ModuleList(conv(hidden, c) for c in out_channels)
        self.from_coarse = nn.ModuleList(conv(hidden, c) for c in out_channels[:-1])
        self.from_fine = nn.ModuleList(conv(hidden, c, stride=2) for c in out_channels[1:])
        self.gain = nn.Parameter(torch.zeros(len(out_channels)))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map K maps (B, in_k, H_k, W_k) to K maps (B, out_k, H_k, W_k)."""
        hidden = [F.leaky_relu(conv(x), 0.1) for conv, x in zip(self.first, maps, strict=True)]
        outputs = [conv(h) for conv, h in zip(self.same, hidden, strict=True)]
        for k, conv in enumerate(self.from_coarse):
            up = F.interpolate(hidden[k + 1], size=hidden[k].shape[2:], mode="bilinear", align_corners=False)
            outputs[k] = outputs[k] + conv(up)
        for k, conv in enumerate(self.from_fine):
            # Halving rounds up, so the coarser map can be one location smaller: average to its size.
            down = F.adaptive_avg_pool2d(conv(hidden[k]), _size(hidden[k + 1]))
            outputs[k + 1] = outputs[k + 1] + down
        return [gain * y for gain, y in zip(self.gain, outputs, strict=True)]


class FusionSubnet(nn.Module):
    """Fusion of all scales at the size of the coarsest, from MSFlow (Zhou et al., TNNLS 2024).

    m = relu(conv relu(norm conv [pool x_1, ..., pool x_K])); y_k = conv(x_k + up(m_k)).

    Args:
        in_channels: Channels of each input, fine to coarse.
        out_channels: Channels of each output.
        hidden: Hidden channels; by default a quarter of the sum of `in_channels`.

    Example:
        >>> subnet = FusionSubnet((3, 4), (6, 8))
        >>> [y.shape for y in subnet([torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4)])]
        [torch.Size([2, 6, 8, 8]), torch.Size([2, 8, 4, 4])]
    """

    @checked
    def __init__(self, in_channels: Sequence[int], out_channels: Sequence[int], hidden: int | None = None) -> None:
        super().__init__()
        total = sum(in_channels)
        hidden = max(2, total // 4) if hidden is None else hidden
        at_least(1, hidden=hidden)
        self.channels = list(in_channels)
        self.first = nn.Conv2d(total, hidden, 3, padding=1)
        self.norm = ChannelNorm(hidden)
        self.second = nn.Conv2d(hidden, total, 3, padding=1)
        self.output = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1) for i, o in zip(in_channels, out_channels, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map K maps (B, in_k, H_k, W_k) to K maps (B, out_k, H_k, W_k)."""
        fused = torch.cat([F.adaptive_avg_pool2d(x, _size(maps[-1])) for x in maps], dim=1)
        fused = F.relu(self.second(F.relu(self.norm(self.first(fused)))))
        return [
            conv(x + F.interpolate(part, size=x.shape[2:], mode="bilinear", align_corners=True))
            for conv, x, part in zip(self.output, maps, fused.split(self.channels, dim=1), strict=True)
        ]


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]
