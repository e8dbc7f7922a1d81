"""Views of feature maps: of smaller and rotated images, concatenated maps and a part of their channels."""

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow._validation import at_least, checked
from semflow.errors import ConfigError

from .frozen import FeatureExtractor, average_pool, check_pooling


class ImagePyramid(nn.Module):
    """Feature maps of an image at full size, half size, quarter size and so on, as in CS-Flow and DifferNet.

    Args:
        features: A frozen backbone; all its maps are computed at every level.
        levels: Number of image sizes; each has half the side of the previous one.

    Example:
        >>> from semflow.features import FrozenFeatures
        >>> features = ImagePyramid(FrozenFeatures(nn.Conv2d(3, 8, 4, stride=4), channels=(8,), strides=(4,)))
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
        """Map images (B, 3, H, W) in [0, 1] to the maps of all levels, from the largest image to the smallest."""
        maps: list[Tensor] = []
        for level in range(self.levels):
            size = [max(1, side // 2**level) for side in images.shape[2:]]
            # Antialiased, because plain bilinear resizing skips pixels; clamped, because rounding can leave [0, 1].
            smaller = images if level == 0 else F.interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1)
            maps += self.features(smaller)
        return maps


class PooledViews(nn.Module):
    """Global averages of all maps, for each of `views` rotations of the image.

    The rotations are locations of one map (B, C, views, 1), so a flow over locations gives a likelihood of each view,
    and the mean over the map is the mean over the views (the score of DifferNet).

    Args:
        features: A frozen backbone or an `ImagePyramid`.
        views: Number of rotations, evenly spaced over the full turn; 1 for the unrotated image.

    Example:
        >>> from semflow.features import FrozenFeatures
        >>> features = PooledViews(FrozenFeatures(nn.Conv2d(3, 8, 4, stride=4), channels=(8,), strides=(4,)), views=4)
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
        self.strides: tuple[int, ...] = (0,)  # locations without a position in the image

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W) in [0, 1] to one map (B, C, views, 1)."""
        turned = rotations(images, self.views)
        rows = [torch.cat([m.mean((2, 3)) for m in self.features(view)], dim=1) for view in turned]
        return [torch.stack(rows, dim=2)[..., None]]


class ConcatenatedMaps(nn.Module):
    """One map on the grid of the finest map, in which the channels of all maps are concatenated (PaDiM, PatchCore).

    Args:
        features: A frozen backbone.
        resize: How coarser maps are resized: `nearest` as in PaDiM, or `bilinear` as in PatchCore.
        smoothing: Odd side of a window over which each map is averaged first, with zeros beyond the border as in
            PatchCore; 1 for none.

    Example:
        >>> from semflow.features import FrozenFeatures
        >>> features = ImagePyramid(FrozenFeatures(nn.Conv2d(3, 8, 4, stride=4), channels=(8,), strides=(4,)), levels=3)
        >>> one = ConcatenatedMaps(features)
        >>> one.channels, one.strides, one(torch.rand(2, 3, 32, 32))[0].shape
        ((24,), (4,), torch.Size([2, 24, 8, 8]))
    """

    @checked
    def __init__(
        self, features: FeatureExtractor, resize: Literal["nearest", "bilinear"] = "bilinear", smoothing: int = 1
    ) -> None:
        super().__init__()
        check_pooling(smoothing=smoothing)
        self.features = cast(nn.Module, features)
        self.resize, self.smoothing = resize, smoothing
        self.finest = min(range(len(features.strides)), key=features.strides.__getitem__)
        self.parts = tuple(features.channels)
        self.channels: tuple[int, ...] = (sum(features.channels),)
        self.strides: tuple[int, ...] = (features.strides[self.finest],)

    @torch.no_grad()
    def forward(self, images: Tensor, chosen: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Map images (B, 3, H, W) in [0, 1] to one map (B, sum of C_k, H_k, W_k), or `chosen` channels of each."""
        maps = self.features(images)
        size = maps[self.finest].shape[2:]
        if chosen is not None:
            maps = [m.index_select(1, index) for m, index in zip(maps, chosen, strict=True) if len(index)]
        maps = average_pool(maps, self.smoothing, zeros_beyond=True)
        return [torch.cat([m if m.shape[2:] == size else F.interpolate(m, size, mode=self.resize) for m in maps], 1)]

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"resize={self.resize}, smoothing={self.smoothing}"


class GroupedMaps(nn.Module):
    """Several maps on one grid, each the concatenated channels of a group of maps.

    Each map is averaged over 3 x 3 locations, with zeros beyond the border as in PatchCore. Then finer maps are
    averaged, and coarser ones interpolated, to the grid of the map number `grid`.

    Args:
        features: A frozen backbone.
        groups: Numbers of the maps in each group.
        grid: Number of the map whose grid all groups have.

    Example:
        >>> from semflow.features import FrozenFeatures
        >>> features = ImagePyramid(FrozenFeatures(nn.Conv2d(3, 8, 4, stride=4), channels=(8,), strides=(4,)), levels=3)
        >>> grouped = GroupedMaps(features, ((0,), (1, 2)), grid=1)
        >>> grouped.channels, [tuple(x.shape) for x in grouped(torch.rand(2, 3, 32, 32))]
        ((8, 16), [(2, 8, 4, 4), (2, 16, 4, 4)])
    """

    @checked
    def __init__(self, features: FeatureExtractor, groups: Sequence[Sequence[int]], grid: int = 0) -> None:
        super().__init__()
        maps = len(features.channels)
        if not groups or any(not group or not all(0 <= k < maps for k in group) for group in (*groups, (grid,))):
            raise ConfigError(f"groups and grid must name maps from 0 to {maps - 1}, but got {groups} and {grid}")
        self.features = cast(nn.Module, features)
        self.groups, self.grid = tuple(tuple(group) for group in groups), grid
        self.channels: tuple[int, ...] = tuple(sum(features.channels[k] for k in group) for group in self.groups)
        self.strides: tuple[int, ...] = (features.strides[grid],) * len(self.groups)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W) in [0, 1] to one map (B, C_g, H, W) per group."""
        maps = average_pool(self.features(images), zeros_beyond=True)
        size = maps[self.grid].shape[2:]
        maps = [m if m.shape[2:] == size else _resized(m, size) for m in maps]
        grouped = [torch.cat([maps[k] for k in group], 1) for group in self.groups]
        return [m.contiguous(memory_format=torch.channels_last) for m in grouped]

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"groups={self.groups}, grid={self.grid}"


def _resized(x: Tensor, size: torch.Size) -> Tensor:
    """Resize a map by averages if it is finer than `size`, and bilinearly if it is coarser."""
    finer = x.shape[2] > size[0] or x.shape[3] > size[1]
    return F.adaptive_avg_pool2d(x, (size[0], size[1])) if finer else F.interpolate(x, size, mode="bilinear")


class RandomChannels(nn.Module):
    """Random channels of a single map (PaDiM's reduction of dimensions), in random order.

    Args:
        features: Features with one map, such as `ConcatenatedMaps`.
        count: Number of channels.
        seed: Seed of the draw; the global generators do not change.

    Example:
        >>> from semflow.features import FrozenFeatures
        >>> features = RandomChannels(FrozenFeatures(nn.Conv2d(3, 8, 4, stride=4), (8,), (4,)), count=3)
        >>> features.channels, features(torch.rand(2, 3, 32, 32))[0].shape
        ((3,), torch.Size([2, 3, 8, 8]))
    """

    index: Tensor
    order: Tensor

    @checked
    def __init__(self, features: FeatureExtractor, count: int, seed: int = 0) -> None:
        super().__init__()
        if len(features.channels) != 1:
            raise ConfigError(f"features must have one map, but got {len(features.channels)}; use ConcatenatedMaps")
        if not 1 <= count <= features.channels[0]:
            raise ConfigError(f"count must be between 1 and the {features.channels[0]} channels, but got {count}")
        self.features = cast(nn.Module, features)
        self.channels: tuple[int, ...] = (count,)
        self.strides: tuple[int, ...] = tuple(features.strides)
        drawn = torch.randperm(features.channels[0], generator=torch.Generator().manual_seed(seed))
        self.register_buffer("index", drawn[:count].clone())
        self._divide()

    def _divide(self) -> None:
        """Find the drawn channels of each map that is concatenated, and their order."""
        if not isinstance(self.features, ConcatenatedMaps):
            return
        ends = torch.tensor(self.features.parts, device=self.index.device).cumsum(0)
        maps = torch.bucketize(self.index, ends, right=True)
        for k, end in enumerate(ends.tolist()):
            own = self.index[maps == k] - (end - self.features.parts[k])
            self.register_buffer(f"chosen{k}", own, persistent=False)
        self.register_buffer("order", maps.argsort(stable=True).argsort(), persistent=False)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._divide()

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W) in [0, 1] to one map (B, count, H_1, W_1)."""
        if not isinstance(self.features, ConcatenatedMaps):
            return [self.features(images)[0].index_select(1, self.index)]
        # Chosen before they are resized and concatenated, channels that are left out cost nothing.
        chosen = [getattr(self, f"chosen{k}") for k in range(len(self.features.parts))]
        return [self.features(images, chosen)[0].index_select(1, self.order)]


def rotations(images: Tensor, count: int) -> list[Tensor]:
    """Rotate images (B, 3, H, W) about their center by k / count of a full turn, k = 0 ... count - 1.

    Quarter turns of square images are exact; other angles are bilinear, with reflection at the border.

    Example:
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
