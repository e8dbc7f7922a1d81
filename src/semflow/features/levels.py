"""Feature levels of timm backbones, found without downloading weights."""

__all__ = ["Levels", "available_strides", "fitting_strides", "probe"]

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from semflow.errors import ConfigError

from .timm_module import build, check_backbone, one_line


@dataclass(frozen=True)
class Levels:
    """Feature levels of a backbone, from shallow to deep: CNN stages or transformer blocks.

    `options` are the arguments of `timm.create_model` for the image size; `image_size` is None if any size is possible.
    """

    backbone: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int] | None
    options: tuple[tuple[str, Any], ...]

    @property
    def isotropic(self) -> bool:
        """True if all levels have one stride, like the blocks of a plain vision transformer."""
        return len(self.strides) > 1 and len(set(self.strides)) == 1

    def select(self, strides: Sequence[int], layers: Sequence[int] | None) -> tuple[int, ...]:
        """Return the indices of the selected levels: `layers` if given, else the deepest level of each stride."""
        count = len(self.strides)
        if layers is not None:
            chosen = tuple(i + count if i < 0 else i for i in layers)
            if not chosen or len(set(chosen)) != len(chosen) or not all(0 <= i < count for i in chosen):
                raise ConfigError(
                    f"layers must be distinct levels of {self.backbone}, 0 to {count - 1}, but got {tuple(layers)}"
                )
            return chosen
        known = set(self.strides)
        if self.isotropic and set(strides) == known and len(strides) <= count:  # evenly spaced, with the last one
            return tuple(round((i + 1) * count / len(strides)) - 1 for i in range(len(strides)))
        if not strides or not known.issuperset(strides) or len(set(strides)) != len(strides):
            example = self.strides[:3] if self.isotropic else tuple(sorted(known))
            raise ConfigError(
                f"strides must select distinct levels of {self.backbone}, such as strides={example}, "
                f"but got {tuple(strides)}"
            )
        return tuple(max(i for i, s in enumerate(self.strides) if s == stride) for stride in strides)


@functools.cache
def probe(backbone: str, image_size: tuple[int, int] | None = None) -> Levels:
    """Return the levels, normalization and image size of a timm backbone, from a model without weights."""
    check_backbone(backbone)
    network, options = _structure(backbone, image_size)
    config = network.pretrained_cfg
    size: tuple[int, int] | None = None
    if config.get("fixed_input_size") and not options.get("dynamic_img_size"):
        native = config["input_size"][-2:]
        size = options.get("img_size", (int(native[0]), int(native[1])))
    return Levels(
        backbone=backbone,
        channels=tuple(int(level["num_chs"]) for level in network.feature_info.info),
        strides=tuple(int(level["reduction"]) for level in network.feature_info.info),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        image_size=size,
        options=tuple(options.items()),
    )


def _structure(backbone: str, image_size: tuple[int, int] | None) -> tuple[Any, dict[str, Any]]:
    """Build a model without weights, with the most flexible image size that the architecture supports."""
    try:
        network = build(backbone, meta=True, features_only=True)
    except Exception as error:  # architectures raise errors of any class
        raise ConfigError(
            f"backbone must support timm's features_only, but got {backbone!r} with the error {one_line(error)!r}"
        ) from error
    if not network.pretrained_cfg.get("fixed_input_size"):
        return network, {}
    sized: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    failure: Exception = ValueError()
    for options in ({"dynamic_img_size": True, **sized}, sized):
        if not options:
            return network, {}
        try:
            return build(backbone, meta=True, features_only=True, **options), options
        except Exception as error:
            failure = error
    raise ConfigError(
        f"image_size must be supported by {backbone!r}, but got {image_size} with the error {one_line(failure)!r}"
    ) from failure


def available_strides(backbone: str) -> tuple[int, ...]:
    """Return the strides of the feature maps of a timm backbone, ascending; one value for a plain vision transformer.

    Example:
        >>> available_strides("tf_efficientnet_lite0")
        (2, 4, 8, 16, 32)
    """
    return tuple(sorted(set(probe(backbone).strides)))


def fitting_strides(backbone: str, strides: Sequence[int]) -> tuple[int, ...]:
    """Return `strides`, or the single stride of a plain vision transformer.

    Example:
        >>> fitting_strides("resnet18", (4, 8, 16)), fitting_strides("deit_tiny_patch16_224", (4, 8, 16))
        ((4, 8, 16), (16,))
    """
    levels = probe(backbone)
    return levels.strides[:1] if levels.isotropic else tuple(strides)
