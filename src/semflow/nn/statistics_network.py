"""Statistics network h of SANFlow, which maps an image or features to maps of log-parameters."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow._validation import at_least, checked
from semflow.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class StatisticsNetwork(nn.Module):
    """h on the image: five 3x3 convolutions with 64 filters and one skip connection (SANFlow, section 3.4.2 and B.1).

    a1 = relu(conv x); three times relu(norm(conv .)); out = conv(a4 + a1). At full resolution this costs 15 GFLOP for
    an image of 256 px, more than many backbones with their flows. A `stride` s folds s x s pixels into channels first,
    which costs about 1 / s^2 of it and loses no resolution if s divides the finest stride of the features.

    Args:
        outputs: Maps to predict; 2 for (log alpha, log beta).
        filters: Hidden channels.
        stride: Pixels folded into one location; 1 as in the paper, 4 is a good choice.

    Example:
        >>> h = StatisticsNetwork()
        >>> sum(p.numel() for p in h.parameters())  # 113,856 as published, and the two biases of the last layer
        113858
        >>> StatisticsNetwork(stride=4)(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 2, 16, 16])
    """

    source: Literal["image", "features"] = "image"
    mean: Tensor
    std: Tensor

    @checked
    def __init__(self, outputs: int = 2, filters: int = 64, stride: int = 1) -> None:
        super().__init__()
        at_least(1, outputs=outputs, filters=filters, stride=stride)
        self.stride = stride
        self.first = nn.Conv2d(3 * stride**2, filters, 3, padding=1, bias=False)
        self.middle = nn.ModuleList(nn.Conv2d(filters, filters, 3, padding=1, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(filters) for _ in range(3))
        self.output = nn.Conv2d(filters, outputs, 3, padding=1)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to maps (B, outputs, H / stride, W / stride)."""
        x = (images - self.mean) / self.std
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        x = F.pixel_unshuffle(x, self.stride).contiguous(memory_format=torch.channels_last)
        x = skip = F.relu(self.first(x))
        for conv, norm in zip(self.middle, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        maps: Tensor = self.output(x + skip)
        return maps


class FeatureStatisticsNetwork(nn.Module):
    """h on the features of one scale: 1x1 convolution, ReLU, 3x3 convolution.

    It costs far less than `StatisticsNetwork`. SANFlow's introduction describes "conditioned on image features and
    semantics", while its Figure 3 shows the image as the input.

    Args:
        channels: C_k of the feature map.
        outputs: Maps to predict; 2 for (log alpha, log beta).
        filters: Hidden channels.
        kernel: Odd kernel size of the last layer; 1 sees each location alone.

    Example:
        >>> FeatureStatisticsNetwork(40)(torch.randn(2, 40, 8, 8)).shape
        torch.Size([2, 2, 8, 8])
    """

    source: Literal["image", "features"] = "features"

    @checked
    def __init__(self, channels: int, outputs: int = 2, filters: int = 64, kernel: int = 3) -> None:
        super().__init__()
        at_least(1, channels=channels, outputs=outputs, filters=filters)
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"kernel must be odd, so that maps keep their sizes, but got {kernel}")
        self.first = nn.Conv2d(channels, filters, 1)
        self.output = nn.Conv2d(filters, outputs, kernel, padding=kernel // 2)
        self.scale = 1 / math.sqrt(channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, C, H, W) to maps (B, outputs, H, W)."""
        # Features can have any scale, so each location is scaled to a root mean square of 1.
        x = features / (features.norm(dim=1, keepdim=True) * self.scale + 1e-6)
        maps: Tensor = self.output(F.relu(self.first(x)))
        return maps
