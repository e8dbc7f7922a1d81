"""A backbone's maps of several versions of one image: smaller ones, and rotated ones."""

__all__ = ["ImagePyramid", "PooledViews", "rotations"]

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow._validation import at_least, checked

from .frozen import FeatureExtractor


class ImagePyramid(nn.Module):
    """The maps of the image, of half of it, of a quarter, ...: what CS-Flow and DifferNet look at.

    Arguments:
        features: a frozen backbone; all its maps are taken at every level.
        levels: how many sizes of the image; each has half the side of the one before.

    >>> from semflow.features import ModuleFeatures
    >>> features = ImagePyramid(ModuleFeatures(nn.Conv2d(3, 8, 4, stride=4), channels=(8,), strides=(4,)))
    >>> features.strides, [m.shape[2:] for m in features(torch.rand(1, 3, 64, 64))]
    ((4, 8, 16), [torch.Size([16, 16]), torch.Size([8, 8]), torch.Size([4, 4])])
    """

    @checked
    def __init__(self, features: FeatureExtractor, levels: int = 3) -> None:
        super().__init__()
        at_least(1, levels=levels)
        self.features = cast(nn.Module, features)
        self.levels = levels
        self.channels = tuple(features.channels) * levels
        self.strides = tuple(stride * 2**level for level in range(levels) for stride in features.strides)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [0, 1] to the maps of all levels, the largest image's first."""
        maps: list[Tensor] = []
        for level in range(self.levels):
            size = [max(1, side // 2**level) for side in images.shape[2:]]
            # Averaging on the way down: a plain bilinear half would skip pixels. Rounding can leave [0, 1] by a hair.
            smaller = images if level == 0 else F.interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1)
            maps += self.features(smaller)
        return maps


class PooledViews(nn.Module):
    """One vector an image: the global averages of all maps; one row for each of `views` rotations of the image.

    The rows are locations of a map (B, C, views, 1), so a flow of locations gives each view its own likelihood, and the
    mean over the map is the mean over the views (DifferNet's score).

    Arguments:
        features: a frozen backbone or an `ImagePyramid`.
        views: rotations, evenly spaced over the full turn; 1 for the image as it is.

    >>> from semflow.features import ModuleFeatures
    >>> features = PooledViews(ModuleFeatures(nn.Conv2d(3, 8, 4, stride=4), channels=(8,), strides=(4,)), views=4)
    >>> features.channels, features(torch.rand(2, 3, 32, 32))[0].shape
    ((8,), torch.Size([2, 8, 4, 1]))
    """

    @checked
    def __init__(self, features: FeatureExtractor, views: int = 1) -> None:
        super().__init__()
        at_least(1, views=views)
        self.features = cast(nn.Module, features)
        self.views = views
        self.channels: tuple[int, ...] = (sum(features.channels),)
        self.strides: tuple[int, ...] = (0,)  # no location has a place in the image

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [0, 1] to one map (B, C, views, 1)."""
        rows = [
            torch.cat([m.mean((2, 3)) for m in self.features(turned)], dim=1)
            for turned in rotations(images, self.views)
        ]
        return [torch.stack(rows, dim=2)[..., None]]


def rotations(images: Tensor, count: int) -> list[Tensor]:
    """The images turned about their centre by k / count of a full turn, k = 0 ... count - 1; mirrored at the border.

    Quarter turns of square images move pixels; other angles are bilinear.

    >>> x = torch.rand(1, 3, 8, 8)
    >>> torch.equal(rotations(x, 4)[1], x.rot90(1, (2, 3)))
    True
    """
    square = images.shape[2] == images.shape[3]
    turned = []
    for k in range(count):
        if 4 * k % count == 0 and (square or 2 * k % count == 0):
            turned.append(images.rot90(4 * k // count, (2, 3)))
            continue
        angle = 2 * math.pi * k / count
        aspect = images.shape[3] / images.shape[2]
        cos, sin = math.cos(angle), math.sin(angle)
        matrix = images.new_tensor([[cos, -sin / aspect, 0], [sin * aspect, cos, 0]]).expand(images.shape[0], 2, 3)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        turned.append(F.grid_sample(images, grid, padding_mode="reflection", align_corners=False).clamp(0, 1))
    return turned
