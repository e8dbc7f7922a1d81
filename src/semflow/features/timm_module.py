"""The import of timm, and models built with it."""

__all__ = ["build", "check_backbone", "load_timm", "one_line"]

import difflib
import functools
import importlib
import logging
from types import ModuleType
from typing import Any

import torch

from semflow._optional import import_optional
from semflow.errors import ConfigError

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
    return importlib.import_module("timm")


def check_backbone(backbone: str) -> None:
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


def build(backbone: str, *, seed: int = 0, meta: bool = False, **options: Any) -> Any:
    """Call `timm.create_model` with initial weights drawn with `seed`, without changing the global generators.

    `meta` builds only the structure, without memory or computation (on the CPU if timm does not support it).
    """
    timm = load_timm()
    # devices=[] and default_generator: neither changes the generators of CUDA devices.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if meta:
            try:
                with torch.device("meta"):
                    return timm.create_model(backbone, pretrained=False, **options)
            except (NotImplementedError, RuntimeError):
                _log.debug("%s cannot be built on the meta device", backbone)
        with torch.device("cpu"):
            return timm.create_model(backbone, **options)
