"""What all backbones share: one normalisation, no training, checked shapes."""

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "FeatureExtractor",
    "FrozenFeatures",
    "ImageNormalization",
    "average_pool",
    "check_pooling",
    "layer_norm",
]

from collections.abc import Mapping, Sequence
from typing import Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow._validation import checked
from semflow.errors import ConfigError, ShapeError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@runtime_checkable
class FeatureExtractor(Protocol):
    """What a detector needs of a backbone: `features(images) -> maps`, with one of `channels` and `strides` a map.

    Example:
        >>> from semflow.features import ModuleFeatures
        >>> features = ModuleFeatures(nn.Conv2d(3, 8, 4, stride=4), channels=(8,), strides=(4,))
        >>> isinstance(features, FeatureExtractor), [tuple(m.shape) for m in features(torch.rand(2, 3, 16, 16))]
        (True, [(2, 8, 4, 4)])
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W) in [0, 1] to a list of maps (B, C_k, H_k, W_k)."""
        ...


def average_pool(maps: Sequence[Tensor], kernel: int = 3, stride: int = 1) -> list[Tensor]:
    """Average each location with its neighbours, at the border the mean of those that exist; keep every `stride`-th.

    >>> [m.shape for m in average_pool([torch.ones(2, 8, 5, 7)])]
    [torch.Size([2, 8, 5, 7])]
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ConfigError(f"kernel must be an odd number of at least 1 (1: no pooling), got {kernel}.")
    if kernel == stride == 1:
        return list(maps)
    return [F.avg_pool2d(m, kernel, stride, padding=kernel // 2, count_include_pad=False) for m in maps]


def layer_norm(maps: Sequence[Tensor]) -> list[Tensor]:
    """Each map of each image to mean 0 and variance 1 over channels and locations together, as FastFlow wants it.

    There is no affine. A likelihood of what comes out is one of normalised features: the map has forgotten its mean and
    its variance, so there is no log-det to count.

    >>> layer_norm([2 + 3 * torch.randn(2, 8, 16, 16)])[0].std((1, 2, 3), correction=0).round(decimals=2).tolist()
    [1.0, 1.0]
    """
    return [F.layer_norm(m, m.shape[1:]) for m in maps]


class ImageNormalization(nn.Module):
    """`(images - mean) / std` per colour channel, as the weights were trained: images (B, 3, H, W) in [0, 1].

    >>> ImageNormalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))(torch.ones(1, 3, 2, 2)).unique()
    tensor([1.])
    """

    mean: Tensor
    std: Tensor

    @checked
    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3:
            raise ConfigError(f"mean and std need three values each (red, green, blue), got {mean} and {std}.")
        if min(std) <= 0:
            raise ConfigError(f"std must be positive, got {tuple(std)}.")
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(tuple(std)).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise images (B, 3, H, W)."""
        return (images - self.mean) / self.std

    def extra_repr(self) -> str:
        """Show the constants."""
        return f"mean={_rounded(self.mean)}, std={_rounded(self.std)}"


class FrozenFeatures(nn.Module):
    """A network whose weights and statistics never change, whatever the caller does to the model it is part of.

    No parameter requires a gradient, `train()` leaves it in eval mode, and the forward pass records no graph
    (`no_grad`, not `inference_mode`: the maps must be able to enter the autograd of what follows).

    Arguments:
        network: maps normalised images (B, 3, H, W) to a map, a list, tuple or dict of maps.
        channels: C_k of each map.
        strides: image pixels per location of each map.
        mean, std: the normalisation the weights were trained with.
        smoothing: odd kernel of an average pooling over each map; 1 means none, 3 is common.
        reduction: stride of that pooling: 2 halves the maps.
        normalize: bring each map of each image to mean 0 and variance 1, see `layer_norm`.

    The maps come out in channels_last memory, so that `m.permute(0, 2, 3, 1).reshape(-1, C)` is a view.

    >>> features = FrozenFeatures(nn.Conv2d(3, 8, 4, stride=4), channels=(8,), strides=(4,)).train()
    >>> features.training, [m.shape for m in features(torch.rand(2, 3, 32, 32))]
    (False, [torch.Size([2, 8, 8, 8])])
    """

    @checked
    def __init__(
        self,
        network: nn.Module,
        channels: Sequence[int],
        strides: Sequence[int],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        smoothing: int = 1,
        reduction: int = 1,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if len(channels) != len(strides) or not channels:
            raise ConfigError(
                f"channels and strides need one entry a map each, got {tuple(channels)} and {tuple(strides)}."
            )
        check_pooling(smoothing, reduction)
        self.channels = tuple(int(c) for c in channels)
        self.network_strides = tuple(int(s) for s in strides)
        self.strides = tuple(s * reduction for s in self.network_strides)
        self.smoothing, self.reduction, self.normalize = smoothing, reduction, normalize
        self.image_normalization = ImageNormalization(mean, std)
        self.network = network.requires_grad_(False)
        self._range_checked = False
        super().train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: normalisation statistics and dropout belong to the pretraining."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W) in [0, 1] to the list of maps (B, C_k, H_k, W_k)."""
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ShapeError(
                "images must be a float tensor (B, 3, H, W) with values in [0, 1], "
                f"got {images.dtype} of shape {tuple(images.shape)}."
            )
        if not torch.compiler.is_compiling():
            self._check_state(images)
        normalised = self.image_normalization(images).contiguous(memory_format=torch.channels_last)
        maps = self._run(normalised)
        self._check_maps(maps, images)
        maps = average_pool(
            [m.contiguous(memory_format=torch.channels_last) for m in maps], self.smoothing, self.reduction
        )
        return layer_norm(maps) if self.normalize else maps

    def _run(self, normalised: Tensor) -> list[Tensor]:
        """Run the network; the place where a subclass brings its output into the form of a list of maps."""
        output = self.network(normalised)
        if isinstance(output, Tensor):
            return [output]
        if isinstance(output, Mapping):
            return list(output.values())
        if isinstance(output, (list, tuple)):
            return list(output)
        raise ShapeError(
            f"{type(self.network).__name__} must return a tensor, a list, a tuple or a dict of feature maps, "
            f"got {type(output).__name__}."
        )

    def _check_state(self, images: Tensor) -> None:
        # `model.apply` and helpers that look for BatchNorm layers set the mode of submodules without calling our train.
        if any(module.training for module in self.network.modules()):
            self.network.eval()
        if self._range_checked or images.numel() == 0:
            return
        # Only once: on a GPU the question waits for the device. Normalising twice or passing 0..255 is systematic.
        low, high = (float(v) for v in images.detach().aminmax())
        if not (low >= -0.05 and high <= 1.05):
            raise ShapeError(
                f"images must have values in [0, 1], got {low:.3g} to {high:.3g}; "
                "divide 8-bit images by 255 and leave the mean and standard deviation to the backbone."
            )
        self._range_checked = True

    def _check_maps(self, maps: Sequence[Tensor], images: Tensor) -> None:
        got = [tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__ for m in maps]
        declared = zip(self.channels, self.network_strides, strict=True)
        expected = [(images.shape[0], c, f"H/{s}", f"W/{s}") for c, s in declared]
        fits = len(maps) == len(self.channels) and all(
            isinstance(m, Tensor) and m.dim() == 4 and m.shape[:2] == e[:2] for m, e in zip(maps, expected, strict=True)
        )
        if not (fits and self._sizes_fit(maps, images)):
            raise ShapeError(
                f"{type(self.network).__name__} returned maps of shape {got} for images {tuple(images.shape)}, "
                f"but channels={self.channels} and strides={self.network_strides} were declared."
            )

    def _sizes_fit(self, maps: Sequence[Tensor], images: Tensor) -> bool:
        return all(
            size in (full // stride, -(-full // stride))
            for m, stride in zip(maps, self.network_strides, strict=True)
            for size, full in zip(m.shape[2:], images.shape[2:], strict=True)
        )

    def extra_repr(self) -> str:
        """Show what comes out."""
        return f"channels={self.channels}, strides={self.strides}, smoothing={self.smoothing}"


def check_pooling(smoothing: int, reduction: int) -> None:
    """Refuse a pooling of the maps that there is none of.

    Raises:
        ConfigError: `smoothing` is not odd, or one of the two is below 1.
    """
    if smoothing < 1 or smoothing % 2 == 0:
        raise ConfigError(f"smoothing must be an odd number of at least 1 (1: none), got {smoothing}.")
    if reduction < 1:
        raise ConfigError(f"reduction must be at least 1 (1: none), got {reduction}.")


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(float(v), 4) for v in values.flatten())
