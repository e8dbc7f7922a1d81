"""The base of all backbones: fixed weights, normalized images, checked maps."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, SupportsIndex, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow._devices import is_traced
from semflow._validation import Size, at_least, checked, height_and_width
from semflow.errors import ConfigError, ShapeError
from semflow.nn import in_eval_mode
from semflow.nn.statistics_network import IMAGENET_MEAN, IMAGENET_STD

from .timm_module import one_line, reduce_with_timm

_turn = threading.RLock()

_PIXELS = 300_000
"""Pixels that a network computes at a time on a CPU.

Its activations are then smaller than 32 MiB, and the next ones take their memory. glibc returns larger blocks to the
system, which clears every page before it is used again: that took a fifth of EfficientNet-Lite0's time.
"""


@runtime_checkable
class FeatureExtractor(Protocol):
    """Interface of a backbone: `features(images) -> maps`, with one entry of `channels` and `strides` per map."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W) in [0, 1] to a list of maps (B, C_k, H_k, W_k)."""
        ...


def average_pool(
    maps: Sequence[Tensor], kernel: int = 3, stride: int = 1, *, zeros_beyond: bool = False
) -> list[Tensor]:
    """Average each location of maps (B, C_k, H_k, W_k) with its neighbors, and keep every `stride`-th location.

    `kernel` is the odd side of the window, 1 disables pooling. At the border the window is cut off, or with
    `zeros_beyond` the map continues with zeros, as in PatchCore.

    Example:
        >>> [m.shape for m in average_pool([torch.ones(2, 8, 5, 7)])]
        [torch.Size([2, 8, 5, 7])]
    """
    check_pooling(kernel=kernel, stride=stride)
    if kernel == stride == 1:
        return list(maps)
    return [F.avg_pool2d(m, kernel, stride, padding=kernel // 2, count_include_pad=zeros_beyond) for m in maps]


def layer_norm(maps: Sequence[Tensor]) -> list[Tensor]:
    """Normalize each map (B, C_k, H_k, W_k) of each image to mean 0 and variance 1, as in FastFlow.

    The mean is over channels and locations. There are neither affine parameters nor a log-determinant: a likelihood of
    the result is a likelihood of normalized features.

    Example:
        >>> layer_norm([2 + 3 * torch.randn(2, 8, 16, 16)])[0].std((1, 2, 3), correction=0).round(decimals=2).tolist()
        [1.0, 1.0]
    """
    return [F.layer_norm(m, m.shape[1:]) for m in maps]


class ImageNormalization(nn.Module):
    """Normalization `(images - mean) / std` per color channel, for images (B, 3, H, W) or gray (B, 1, H, W) in [0, 1].

    With one value each it is that of a network for gray images, which gets the mean over the channels of its images.

    Example:
        >>> ImageNormalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))(torch.ones(1, 3, 2, 2)).unique()
        tensor([1.])
    """

    mean: Tensor
    std: Tensor

    @checked
    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        if len(mean) != len(std) or len(mean) not in (1, 3):
            raise ConfigError(
                f"mean and std must have three values each (red, green, blue) or one (gray), but got {mean} and {std}"
            )
        if min(std) <= 0:
            raise ConfigError(f"std must be positive, but got {tuple(std)}")
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(tuple(std)).view(-1, 1, 1))

    @property
    def channels(self) -> int:
        """Channels of the normalized images."""
        return len(self.mean)

    def forward(self, images: Tensor) -> Tensor:
        """Normalize images."""
        return ((images.mean(1, keepdim=True) if self.channels == 1 else images) - self.mean) / self.std

    def extra_repr(self) -> str:
        """Return the constants for `repr`."""
        mean, std = (tuple(round(float(v), 4) for v in values.flatten()) for values in (self.mean, self.std))
        return f"mean={mean}, std={std}"


class FrozenFeatures(nn.Module):
    """Any network as a backbone whose weights and statistics never change.

    No parameter requires a gradient, `train()` keeps the network in eval mode, and the forward pass records no graph
    (`no_grad`, not `inference_mode`, so that the maps can enter the autograd graph of later layers). Each call compares
    the maps with `channels` and `strides`. They are in channels_last memory format.

    Args:
        network: Module that maps normalized images (B, 3, H, W), or (B, 1, H, W) if it is for gray images, to one map
            or a list, tuple or dict of maps. It is frozen in place, not copied.
        channels: Number of channels of each map.
        strides: Image pixels per location of each map.
        mean, std: Normalization that the weights were trained with; zeros and ones if the network normalizes itself.
            One value each declares a network for gray images, which gets the mean over the channels of a color image.
        smoothing, reduction: Odd kernel and stride of an average pooling over each map, see `average_pool`.
        normalize: Normalize each map of each image to mean 0 and variance 1, see `layer_norm`.

    Example:
        >>> features = FrozenFeatures(nn.Conv2d(3, 8, 4, stride=4), channels=(8,), strides=(4,)).train()
        >>> features.training, [m.shape for m in features(torch.rand(2, 3, 32, 32))]
        (False, [torch.Size([2, 8, 8, 8])])
    """

    _exact_sizes = True  # False in a subclass whose strides are nominal

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
                f"channels and strides must have one entry per map, but got {tuple(channels)} and {tuple(strides)}"
            )
        check_pooling(smoothing=smoothing, reduction=reduction)
        self.channels = tuple(int(c) for c in channels)
        self.network_strides = tuple(int(s) for s in strides)
        self.strides = tuple(s * reduction for s in self.network_strides)
        self.smoothing, self.reduction, self.normalize = smoothing, reduction, normalize
        self.image_normalization = ImageNormalization(mean, std)
        self.network = network.requires_grad_(False)
        super().train(False)

    @classmethod
    def measured(cls, network: nn.Module, image_size: Size, **options: Any) -> "FrozenFeatures":
        """Freeze a network whose channels and strides are measured on an image.

        Args:
            network: see `FrozenFeatures`.
            image_size: side of the image in pixels, or (height, width).
            options: further arguments of `FrozenFeatures`, such as `mean=(0.45,), std=(0.22,)` of a network for gray
                images.

        Example:
            >>> features = FrozenFeatures.measured(nn.Conv2d(3, 8, 4, stride=4), 32)
            >>> features.channels, features.strides
            ((8,), (4,))
        """
        sides, name = height_and_width(image_size), type(network).__name__
        trial = FrozenFeatures(network, (1,), (1,), **{k: x for k, x in options.items() if k in ("mean", "std")})
        channels = trial.image_normalization.channels
        like = next(network.parameters(), trial.image_normalization.mean)
        try:
            with torch.no_grad():
                maps = trial._run(torch.zeros(1, channels, *sides, dtype=like.dtype, device=like.device))
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise ConfigError(
                f"{name} must map images (1, {channels}, {sides[0]}, {sides[1]}) to feature maps, but got the error "
                f"{one_line(error)!r}; use its layers before the classifier"
            ) from error
        if any(not isinstance(m, Tensor) or m.dim() != 4 or m.numel() == 0 for m in maps) or not maps:
            given = [tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__ for m in maps]
            raise ConfigError(
                f"{name} must return feature maps (B, C, H, W), but got {given}; use its layers before the classifier"
            )
        strides = [max(1, round(sides[0] / m.shape[2])) for m in maps]
        features = cls(network, [m.shape[1] for m in maps], strides, **options)
        features._check_maps(maps, trial.image_normalization.mean.new_zeros(1, channels, *sides))
        return features

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Return the state for pickle and copy; see `reduce_with_timm`."""
        return reduce_with_timm(self, super().__reduce_ex__(protocol))

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever `mode` is."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W), or gray ones (B, 1, H, W), in [0, 1] to the list of maps (B, C_k, H_k, W_k).

        The range is checked on the CPU; reading values of a GPU would wait for it.
        """
        if not isinstance(images, Tensor):
            raise ShapeError(f"images must be a tensor (B, 3, H, W) in [0, 1], but got {type(images).__name__}")
        if images.dim() != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
            raise ShapeError(
                "images must be a float tensor (B, 3, H, W) or (B, 1, H, W) with values in [0, 1], "
                f"but got {images.dtype} {tuple(images.shape)}"
            )
        if not torch.compiler.is_compiling():
            if images.device.type == "cpu":
                self._check_range(images)
            if any(module.training for module in self.network.modules()):
                # `model.apply` and helpers for batch norms set the mode of submodules without calling our `train`.
                with in_eval_mode(self) as still:
                    return still.forward(images)
        own = self.image_normalization.mean.dtype
        normalized = self.image_normalization(images.to(own) if images.dtype == torch.float64 else images).contiguous(
            memory_format=torch.channels_last
        )
        maps = self._run_in_parts(normalized)
        self._check_maps(maps, images)
        maps = [m.contiguous(memory_format=torch.channels_last) for m in maps]
        maps = average_pool(maps, self.smoothing, self.reduction)
        return layer_norm(maps) if self.normalize else maps

    def _run_in_parts(self, normalized: Tensor) -> list[Tensor]:
        """Run the network, on a CPU for a few images at a time."""
        if normalized.device.type != "cpu" or is_traced():  # a traced graph takes any number of images
            return self._run(normalized)
        few = max(1, _PIXELS // max(1, normalized.shape[2:].numel()))
        if len(normalized) <= few:
            return self._run(normalized)
        return [torch.cat(parts) for parts in zip(*map(self._run, normalized.split(few)), strict=True)]

    def _run(self, normalized: Tensor) -> list[Tensor]:
        """Run the network and return a list of maps; subclasses extend this."""
        if not torch.compiler.is_compiling() and any(m._forward_hooks for m in self.network.modules()):
            with _turn:  # hooks keep their maps in one place for all threads
                output = self.network(normalized)
        else:
            output = self.network(normalized)
        if isinstance(output, Tensor):
            return [output]
        if isinstance(output, Mapping):
            return list(output.values())
        if isinstance(output, (list, tuple)):
            return list(output)
        raise ShapeError(
            f"the output of {type(self.network).__name__} must be a tensor or a list, tuple or dict of feature maps, "
            f"but got {type(output).__name__}"
        )

    def _check_range(self, images: Tensor) -> None:
        if images.numel() == 0:
            return
        low, high = (float(v) for v in images.detach().aminmax())
        if not (low >= -0.05 and high <= 1.05):
            raise ShapeError(
                f"images must have values in [0, 1], but got {low:.3g} to {high:.3g}; "
                "divide 8-bit images by 255 and leave mean and standard deviation to the backbone"
            )

    def _check_maps(self, maps: Sequence[Tensor], images: Tensor) -> None:
        def fits(m: Tensor, channels: int, stride: int) -> bool:
            if not isinstance(m, Tensor) or m.dim() != 4 or m.shape[:2] != (images.shape[0], channels):
                return False
            sides = zip(m.shape[2:], images.shape[2:], strict=True)
            return not self._exact_sizes or all(size in (full // stride, -(-full // stride)) for size, full in sides)

        if len(maps) != len(self.channels) or not all(map(fits, maps, self.channels, self.network_strides)):
            got = [tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__ for m in maps]
            raise ShapeError(
                f"maps of {type(self.network).__name__} must have channels={self.channels} and "
                f"strides={self.network_strides}, but got {got} for images {tuple(images.shape)}"
            )

    def extra_repr(self) -> str:
        """Return channels, strides and smoothing for `repr`."""
        return f"channels={self.channels}, strides={self.strides}, smoothing={self.smoothing}"


def check_pooling(**sizes: int) -> None:
    """Raise ConfigError if the first size, the kernel of a pooling, is not odd, or one is below 1; see `at_least`."""
    name, kernel = next(iter(sizes.items()))
    if kernel < 1 or kernel % 2 == 0:
        raise ConfigError(f"{name} must be an odd number of at least 1 (1 disables pooling), but got {kernel}")
    at_least(1, **sizes)
