"""The one place that imports timm, and what that takes."""

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

# torchvision's own declarations of the two operators its Python code refers to while it is being imported.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # a Library that is collected takes its declarations with it


def one_line(error: BaseException, limit: int = 160) -> str:
    """The text of someone else's error, as part of a line of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


@functools.cache
def load_timm() -> ModuleType:
    """Import timm, with a CPU build of torch beside a CUDA build of torchvision too.

    In that combination torchvision's compiled operators cannot load, and `import torchvision` fails with
    `operator torchvision::nms does not exist`. timm needs none of them: declaring the two that are looked up during
    the import is enough. It is done only after the import has failed for that reason.
    """
    try:
        return import_optional("timm")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise ConfigError(
                f"timm cannot be imported, torch and torchvision do not match: {one_line(error)}"
            ) from error
    _declare_torchvision_operators()
    return importlib.import_module("timm")


def _declare_torchvision_operators() -> None:
    _log.info("torchvision's compiled operators do not load with this torch; declaring their schemas instead")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _declared.append(library)


def check_backbone(backbone: str) -> None:
    """Raise a ConfigError with the closest names if timm does not know the backbone."""
    timm = load_timm()
    base, _, tag = backbone.partition(".")
    if timm.is_model(base):
        tagged = timm.list_pretrained(f"{base}.*") if tag else []
        if tag and backbone not in tagged:
            tags = [name.partition(".")[2] for name in tagged]
            raise ConfigError(f"backbone '{backbone}': timm has no weights '{tag}' for {base}; it has {_join(tags)}.")
        return
    close = difflib.get_close_matches(base, timm.list_models(), n=4, cutoff=0.5)
    hint = f"did you mean {_join(close)}?" if close else "timm.list_models() lists them."
    raise ConfigError(f"backbone '{backbone}' is unknown to timm {timm.__version__}; {hint}")


def build(backbone: str, *, seed: int = 0, meta: bool = False, **options: Any) -> Any:
    """`timm.create_model` that draws its initial weights from `seed` and leaves the global generators alone.

    Arguments:
        meta: build the structure only, without memory or computing (falls back to the CPU where timm cannot).
        options: passed on to `timm.create_model`.
    """
    timm = load_timm()
    # devices=[] and default_generator: neither touches the generators of CUDA devices.
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


def _join(names: list[str]) -> str:
    return ", ".join(names) if names else "none"
