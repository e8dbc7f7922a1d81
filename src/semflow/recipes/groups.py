"""Groups of recipe arguments: frozen dataclasses that check their fields."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from semflow._validation import Settings, Size, at_least, height_and_width, plain_size, positive
from semflow.bases import BaseAndHead, Variance, base_and_head
from semflow.errors import ConfigError
from semflow.features import FeatureExtractor, FrozenFeatures, TimmFeatures, available_strides
from semflow.flows import AffineCoupling, SplineCoupling, coupling_stack
from semflow.functional import Form
from semflow.nn import LocationSubnet, SubnetFactory


@dataclass(frozen=True)
class Backbone(Settings):
    """Frozen timm backbone, see `semflow.features.TimmFeatures`.

    Args:
        name: timm model name.
        weights: `hub`, `packaged`, `random` or a file.
        strides: pixels per location of the feature maps. For a ViT repeat its stride, such as (16, 16, 16).
        smoothing: odd kernel of an average pooling of the maps, 1 for none.
        reduction: stride of that pooling.
        weight_bits: 8 rounds the weights to those that 8-bit integers can store, for `semflow export --precision int8`.
    """

    name: str = "wide_resnet50_2"
    weights: str = "hub"
    strides: tuple[int, ...] = (8, 16, 32)
    smoothing: int = 1
    reduction: int = 1
    weight_bits: Literal[8, 32] = 32


AnyBackbone = Backbone | str | FeatureExtractor | nn.Module
"""Backbone of a recipe: a `Backbone`, a timm name (the rest is the recipe's default), or a module of the user's own."""


class WithSubnet(Settings):
    """Base class of groups with a field `subnet`, a constructor of the user's own or None."""

    def __post_init__(self) -> None:
        super().__post_init__()
        subnet = vars(self)["subnet"]
        if subnet is not None and (isinstance(subnet, nn.Module) or not callable(subnet)):
            raise ConfigError(
                f"subnet must be a constructor f(in, out), which each coupling calls, but got {type(subnet).__name__}"
            )


@dataclass(frozen=True)
class Couplings(WithSubnet):
    """Coupling blocks with a position code, applied location by location.

    Args:
        blocks: number of blocks per scale.
        position_channels: channels of the position code.
        permutation: `soft` rotates the channels, `hard` permutes them and is faster.
        standardize: standardize each channel over the training data.
        subnet: constructor `f(in, out)` of the subnets' networks, see `semflow.flows.AffineCoupling`; None takes the
            recipe's.
        kind: `affine`, or `spline` for rational-quadratic splines, at about seven times the cost.
    """

    blocks: int = 8
    position_channels: int = 128
    permutation: Literal["hard", "soft"] = "soft"
    standardize: bool = False
    subnet: SubnetFactory | None = None
    kind: Literal["affine", "spline"] = "affine"

    def flows(self, channels: Sequence[int], start: float) -> list[nn.Module]:
        """Build one flow per scale, see `semflow.flows.coupling_stack`."""
        options: dict[str, Any] = {"permutation": self.permutation, "standardize": self.standardize, "start": start}
        options["coupling"] = {"affine": AffineCoupling, "spline": SplineCoupling}[self.kind]
        options |= {"subnets": (self.subnet or LocationSubnet,), "context_channels": self.position_channels}
        return [coupling_stack(c, self.blocks, **options) for c in channels]


@dataclass(frozen=True)
class ConvCouplings(WithSubnet):
    """Convolutional coupling blocks of FastFlow.

    Args:
        blocks: number of blocks per scale; None takes 8, or 20 for a transformer.
        hidden_ratio: hidden channels of a subnet per channel of a half; None takes 1, or 0.16 for a transformer.
        conv3x3_only: use 3x3 kernels only, instead of 3x3 and 1x1 in turn.
        standardize: standardize each channel over the training data, with its log-det, instead of normalizing each map.
        subnet: constructor `f(in, out)` of the subnets' networks, see `semflow.flows.AffineCoupling`; None takes the
            recipe's.
    """

    blocks: int | None = None
    hidden_ratio: float | None = None
    conv3x3_only: bool = False
    standardize: bool = False
    subnet: SubnetFactory | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks is not None:
            at_least(1, blocks=self.blocks)
        if self.hidden_ratio is not None:
            positive(hidden_ratio=self.hidden_ratio)


@dataclass(frozen=True)
class PairedCouplings(WithSubnet):
    """Pairs of couplings, each of which transforms one half of the channels.

    Args:
        blocks: number of pairs.
        hidden: hidden channels of their subnets.
        standardize: standardize each channel over the training data.
        subnet: constructor `f(in, out)` of the subnets' networks, see `semflow.flows.AffineCoupling`; None takes the
            recipe's.
    """

    blocks: int = 8
    hidden: int = 2048
    standardize: bool = True
    subnet: SubnetFactory | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, blocks=self.blocks, hidden=self.hidden)


@dataclass(frozen=True)
class PyramidCouplings(WithSubnet):
    """Coupling blocks of MSFlow.

    Args:
        blocks: number of blocks of each scale, fine to coarse.
        position_channels: channels of the position code.
        standardize: standardize each channel over the training data.
        subnet: constructor `f(in, out)` of the subnets' networks, see `semflow.flows.AffineCoupling`; None takes the
            recipe's.
    """

    blocks: tuple[int, ...] = (2, 5, 8)
    position_channels: int = 64
    standardize: bool = False
    subnet: SubnetFactory | None = None


@dataclass(frozen=True)
class StatisticsPrediction(Settings):
    """SANFlow's prediction of the base distribution's variance, for recipes that train on normal images.

    Args:
        variance: `predicted` by a network at every location; `learned`, one per scale; `fixed` at `mode`; or `unit`,
            the standard normal.
        mode: mode of the variance's prior, at which training starts.
        form: form of the likelihood, see `semflow.functional.normal_log_prob`.
        kl: weight of the divergence from the variance's prior.
    """

    variance: Variance = "predicted"
    mode: float = 0.1
    form: Form = "exact"
    kl: float = 0.2


@dataclass(frozen=True)
class SemanticStatistics(Settings):
    """SANFlow's prediction of the base distribution's statistics, for training with synthetic anomalies.

    Args:
        variance, mode, form, kl: see `StatisticsPrediction`.
        margin: mean of the anomalous distribution; the normal one has mean 0.
        predicted_mean: also predict shifts of both means.
        source: input of the network: the `image`, once for all scales, or the `features` of each scale.
        stride: pixels that the network folds into one location if it sees the image, at most the finest stride. The
            paper's network has 1, at 64 times the cost of 8.
        bce: weight of the binary cross-entropy between normal and anomalous locations.
    """

    variance: Variance = "predicted"
    mode: float = 0.1
    form: Form = "exact"
    kl: float = 0.2
    margin: float = 1.0
    predicted_mean: bool = False
    source: Literal["image", "features"] = "image"
    stride: int = 8
    bce: float = 1.0


def build_features(
    backbone: AnyBackbone, image_size: Size, seed: int, *, normalize: bool = False, levels: int = 1
) -> FeatureExtractor:
    """Build the feature extractor of a recipe.

    Args:
        backbone: a feature extractor is returned unchanged. Of any other module, channels and strides are measured on
            an image, see `semflow.features.FrozenFeatures.measured`.
        image_size: side of the images in pixels, or (height, width).
        seed: seed of random weights.
        normalize: see `semflow.features.FrozenFeatures`.
        levels: number of image sizes that the features are computed of, each half the previous one.

    Example:
        >>> build_features(Backbone("test_efficientnet", "random", (8,)), image_size=32, seed=0).channels
        (32,)
    """
    if isinstance(backbone, str):
        backbone = Backbone(backbone)
    if isinstance(backbone, Backbone):
        _check_patches(backbone.name, image_size, levels)
        settings = dict(vars(backbone))
        return TimmFeatures(settings.pop("name"), **settings, image_size=image_size, normalize=normalize, seed=seed)
    if isinstance(backbone, FeatureExtractor):
        return backbone
    if not isinstance(backbone, nn.Module):
        kind = type(backbone).__name__
        raise ConfigError(f"backbone must be a Backbone, a name of timm or a module, but got {kind}")
    return FrozenFeatures.measured(backbone, image_size, normalize=normalize)


def _check_patches(name: str, image_size: Size, levels: int) -> None:
    """Raise ConfigError for images that a vision transformer cannot divide into patches."""
    strides = available_strides(name)
    step = strides[0] * 2 ** (levels - 1)
    sides = height_and_width(image_size)
    if len(strides) == 1 and any(side % step for side in sides):
        best = plain_size([-(-side // step) * step for side in sides])
        sizes = "" if levels == 1 else f" at {levels} image sizes"
        raise ConfigError(
            f"image_size must have sides that are multiples of {step} for the patches of {name}{sizes}, but got "
            f"{image_size}; use image_size={best}"
        )


def build_base(
    statistics: StatisticsPrediction | SemanticStatistics | None,
    channels: Sequence[int],
    strides: Sequence[int] = (),
    **options: Any,
) -> BaseAndHead:
    """Build base, variance head and starting scale from `statistics`; None gives the standard normal.

    `channels` and `strides` are those of the feature maps; `options` are further arguments of `base_and_head`.

    Example:
        >>> build_base(StatisticsPrediction(), channels=(16,), strides=(8,)).base
        SemanticGaussian(normal_mean=0.0, anomaly_mean=1.0, form=exact)
    """
    if statistics is None:
        return base_and_head("unit")
    settings = {name: value for name, value in vars(statistics).items() if name not in ("kl", "bce")}
    return base_and_head(channels=channels, strides=strides, **settings, **options)
