"""Which feature maps a timm backbone offers, found without its weights."""

__all__ = ["Levels", "available_strides", "fitting_strides", "probe"]

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from semflow.errors import ConfigError

from .timm_module import build, check_backbone, one_line


@dataclass(frozen=True)
class Levels:
    """The feature levels of a backbone: CNN stages or transformer blocks, from shallow to deep.

    `options` are the arguments `timm.create_model` needs for the image size; `image_size` is None where any size goes.
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
        """Whether all levels have one stride, as the blocks of a plain vision transformer do."""
        return len(self.strides) > 1 and len(set(self.strides)) == 1

    def select(self, strides: Sequence[int], layers: Sequence[int] | None) -> tuple[int, ...]:
        """Indices of the levels asked for: by `layers` if given, else the deepest level of each of `strides`."""
        count = len(self.strides)
        if layers is not None:
            chosen = tuple(i + count if i < 0 else i for i in layers)
            if not chosen or len(set(chosen)) != len(chosen) or not all(0 <= i < count for i in chosen):
                raise ConfigError(
                    f"layers={tuple(layers)}: {self.backbone} has feature levels 0 to {count - 1}; name each once."
                )
            return chosen
        if not strides:
            raise ConfigError("strides must name at least one stride.")
        missing = sorted(set(strides) - set(self.strides))
        if self.isotropic:
            if missing or len(strides) > count:
                stride, some = self.strides[0], min(3, count)
                raise ConfigError(
                    f"strides={tuple(strides)}: all {count} levels of {self.backbone} have stride {stride}; repeat it "
                    f"(strides={(stride,) * some}) or name the blocks, for example layers={_spread(some, count)}."
                )
            return _spread(len(strides), count)
        if missing or len(set(strides)) != len(strides):
            raise ConfigError(
                f"strides={tuple(strides)}: {self.backbone} has feature maps at strides "
                f"{tuple(sorted(set(self.strides)))}; name each once."
            )
        return tuple(max(i for i, s in enumerate(self.strides) if s == stride) for stride in strides)


def _spread(number: int, count: int) -> tuple[int, ...]:
    """`number` blocks of `count`, evenly spaced, the last one included."""
    return tuple(round((i + 1) * count / number) - 1 for i in range(number))


@functools.cache
def probe(backbone: str, image_size: tuple[int, int] | None = None) -> Levels:
    """Ask timm for a backbone's levels, normalisation and image size, from a model without weights."""
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
    """Build without weights, with the most flexible handling of image sizes that this architecture takes."""
    try:
        network = build(backbone, meta=True, features_only=True)
    except Exception as error:  # each architecture refuses in its own way
        raise ConfigError(
            f"backbone '{backbone}' cannot give feature maps (timm's features_only): {one_line(error)}"
        ) from error
    if not network.pretrained_cfg.get("fixed_input_size"):
        return network, {}
    sized: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    refusal: Exception = ValueError()
    for options in ({"dynamic_img_size": True, **sized}, sized):
        if not options:
            return network, {}
        try:
            return build(backbone, meta=True, features_only=True, **options), options
        except Exception as error:
            refusal = error
    raise ConfigError(
        f"image_size={image_size} does not go with backbone '{backbone}': {one_line(refusal)}"
    ) from refusal


def available_strides(backbone: str) -> tuple[int, ...]:
    """Strides at which a timm backbone has feature maps, ascending; one value for a plain vision transformer.

    >>> available_strides("tf_efficientnet_lite0")
    (2, 4, 8, 16, 32)
    """
    return tuple(sorted(set(probe(backbone).strides)))


def fitting_strides(backbone: str, strides: Sequence[int]) -> tuple[int, ...]:
    """`strides`, or for a plain vision transformer, which has no pyramid, its own stride once.

    >>> fitting_strides("resnet18", (4, 8, 16)), fitting_strides("deit_tiny_patch16_224", (4, 8, 16))
    ((4, 8, 16), (16,))
    """
    levels = probe(backbone)
    return levels.strides[:1] if levels.isotropic else tuple(strides)
