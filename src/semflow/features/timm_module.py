"""The import of timm, models built with it, and their feature levels, found without downloading weights."""

import difflib
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from semflow._defaults import blank_weights
from semflow._optional import import_large, import_optional
from semflow.errors import ConfigError

from .deferring import deferred_compiler

_log = logging.getLogger(__name__)

_declared: list[torch.library.Library] = []  # keeps the declarations alive


def one_line(error: BaseException, limit: int = 160) -> str:
    """Return the message of another library's error in one line of limited length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


@functools.cache
def load_timm() -> ModuleType:
    """Import timm, even if a CPU build of torch is combined with a CUDA build of torchvision.

    Then `import torchvision` fails with `operator torchvision::nms does not exist`. timm does not need torchvision's
    compiled operators, so declaring the two used during the import is enough.
    """
    try:
        with deferred_compiler():
            return import_optional("timm")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise ConfigError(
                f"torch and torchvision must match to import timm, but got the error {one_line(error)!r}"
            ) from error
    _log.info("torchvision's compiled operators do not load with this torch; declaring their schemas instead")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    with deferred_compiler():
        return import_large("timm")


class _Timm:
    """Object whose unpickling imports timm; pickled before the networks that need the import."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _imported, ()


def _imported() -> _Timm:
    load_timm()
    return _Timm()


def reduce_with_timm(module: nn.Module, reduced: Any) -> Any:
    """Return what `__reduce_ex__` returned, so that unpickling in a fresh process calls `load_timm` first.

    Pickle imports timm by itself to find the classes of its networks, which fails where `load_timm` is needed.
    """
    if not any(type(part).__module__.partition(".")[0] == "timm" for part in module.modules()):
        return reduced
    make, arguments, *state = reduced
    return _made, (_Timm(), make, arguments), *state


def _made(timm: _Timm, make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return make(*arguments)


def _check_backbone(backbone: str) -> None:
    """Raise ConfigError with the closest names if timm does not have the backbone."""
    timm = load_timm()
    base, _, tag = backbone.partition(".")
    if timm.is_model(base):
        tagged = timm.list_pretrained(f"{base}.*") if tag else []
        if tag and backbone not in tagged:
            tags = ", ".join(name.partition(".")[2] for name in tagged) or "none"
            raise ConfigError(f"backbone must have a tag of {base} in timm ({tags}), but got {backbone!r}")
        return
    close = difflib.get_close_matches(base, timm.list_models(), n=4, cutoff=0.5)
    advice = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
    raise ConfigError(f"backbone must be a model of timm {timm.__version__}, but got {backbone!r}; {advice}")


@deferred_compiler()
def build(backbone: str, *, seed: int = 0, meta: bool = False, **options: Any) -> Any:
    """Call `timm.create_model` with a local `seed`; `meta` builds only the structure, if timm supports it."""
    timm = load_timm()
    # devices=[] and default_generator: neither changes the generators of CUDA devices.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if meta:
            try:
                with torch.device("meta"), blank_weights():
                    return timm.create_model(backbone, pretrained=False, **options)
            except (NotImplementedError, RuntimeError):
                _log.debug("%s cannot be built on the meta device", backbone)
        with torch.device("cpu"):
            return timm.create_model(backbone, **options)


@dataclass(frozen=True)
class Levels:
    """Feature levels of a backbone, from shallow to deep: CNN stages or transformer blocks."""

    backbone: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int] | None  # None if any size is possible
    options: tuple[tuple[str, Any], ...]  # arguments of `timm.create_model` for the image size

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
            # One for each map that was asked for, so that what the maps are used for stays as it is.
            example = self.strides[: len(strides) or 3] if self.isotropic else tuple(sorted(known))
            raise ConfigError(
                f"strides must select distinct levels of {self.backbone}, such as strides={example}, "
                f"but got {tuple(strides)}"
            )
        return tuple(max(i for i, s in enumerate(self.strides) if s == stride) for stride in strides)


@functools.cache
def probe(backbone: str, image_size: tuple[int, int] | None = None) -> Levels:
    """Return the levels, normalization and image size of a timm backbone, from a model without weights."""
    _check_backbone(backbone)
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
