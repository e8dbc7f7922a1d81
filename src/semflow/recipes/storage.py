"""Saving detectors of registered recipes, and loading them again."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from semflow._defaults import blank_weights, own_defaults
from semflow.detectors import Detector
from semflow.errors import CheckpointError, ConfigError
from semflow.features import FeatureExtractor
from semflow.files import writing
from semflow.files.places import occupants
from semflow.files.tensors import read_about
from semflow.nn import SubnetFactory
from semflow.training.checkpoint import CONFIG, MODEL, load_into, origin, read_config, save_model, write_config
from semflow.training.loading import check_device

from .groups import Backbone
from .registry import RECIPES
from .remembering import attach, stored_memory
from .settings import plain_settings, resolve_settings


def save(detector: Detector, path: str | Path) -> Path:
    """Write a detector's configuration and all weights, also the backbone's, to a folder, and return the folder.

    Args:
        detector: detector of a recipe.
        path: new or empty folder, or a run directory of the same recipe and arguments, whose model is replaced.

    Example:
        >>> import tempfile
        >>> from semflow.recipes import cflow_ad
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load(save(cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32), folder)).provenance.recipe
        'cflow_ad'
    """
    if not detector.provenance.recipe:
        raise ConfigError("detector must have a recipe to be saved, but got none; build it in a function with @recipe")
    run = Path(path)
    with writing(run, "choose another folder", CheckpointError):
        run.mkdir(parents=True, exist_ok=True)
        if not (run / CONFIG).exists():
            if occupants(run):
                raise CheckpointError(f"{run} must be a new or empty folder, but got one with other files")
            write_config(run, origin(detector))
        config = read_config(run)
        for name, value in origin(detector).items():
            if config.get(name) != value:
                raise CheckpointError(f"{run} must hold a detector of {name} {value}, but got {config.get(name)}")
        save_model(detector, run)
    return run


@own_defaults()
def load(
    path: str | Path,
    features: FeatureExtractor | nn.Module | None = None,
    *,
    subnet: SubnetFactory | None = None,
    device: str | torch.device = "auto",
) -> Detector:
    """Load a trained detector from a run directory of `fit` or a folder of `save`, in eval mode.

    The folder holds the backbone's weights, so nothing is downloaded. Recipes of other packages must be registered, so
    import the module that defines them first.

    Args:
        path: the folder.
        features: backbone of your own, built like the one that the detector was made with. Its weights are replaced by
            the saved ones.
        subnet: constructor of subnets of your own that the detector was made with.
        device: `auto` (CUDA if available), `cpu`, `cuda`, ...

    A memory that replaced the recipe's base (see `remember`) is part of the detector.

    Raises:
        CheckpointError: If the folder holds no complete detector, its recipe is not registered, or `features` is
            missing or has another structure.
    """
    place = check_device(device)
    config = read_config(path)
    name, module, arguments = (config.get(key) for key in ("recipe", "module", "arguments"))
    if name is None:
        raise CheckpointError(f"{path} must hold a detector of a recipe, but got one without")
    recipe = RECIPES.get(name)
    if recipe is None or recipe.__module__ != module:
        raise CheckpointError(
            f"{path} must hold a detector of a registered recipe, but got {name!r}; import {module} before loading"
        )
    try:
        resolved = resolve_settings(recipe, _with_own(path, arguments or {}, features, subnet))
        memory = read_about(model).get("memory") if (model := Path(path) / MODEL).is_file() else None
        weightless = {k: replace(v, weights="random") if isinstance(v, Backbone) else v for k, v in resolved.items()}
        own = module.partition(".")[0] == __name__.partition(".")[0]  # a recipe of others may draw what is not saved
        with blank_weights() if own else nullcontext():
            detector = recipe(**weightless)
        if memory is not None:
            attach(detector, stored_memory(memory))
    except (
        TypeError,
        AttributeError,
        KeyError,
        ConfigError,
        RuntimeError,
        ArithmeticError,
        MemoryError,
    ) as error:  # torch's, of sizes
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{path} must hold arguments of recipe {name}, but got others: {reason}; use the version that made it"
        ) from error
    detector.provenance = replace(detector.provenance, arguments=plain_settings(resolved))
    return load_into(detector, path).to(place).eval()


def _with_own(path: str | Path, arguments: Mapping[str, Any], features: object, subnet: object) -> dict[str, Any]:
    """Put the user's own feature extractor and subnet in the places of those that the arguments name."""
    used: set[str] = set()

    def replaced(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        if set(value) == {"module"}:
            used.add("features")
            if not isinstance(features, nn.Module):
                raise CheckpointError(
                    f"{path} must be loaded with its feature extractor, {value['module']}, but got {features}; pass it "
                    "as features"
                )
            return features
        if set(value) == {"subnet"} and isinstance(value["subnet"], str):
            used.add("subnet")
            if subnet is None:
                raise CheckpointError(
                    f"{path} must be loaded with its subnet, {value['subnet']}, but got none; pass it as subnet"
                )
            return subnet
        return {name: replaced(inner) for name, inner in value.items()}

    found: dict[str, Any] = replaced(arguments)
    for name, given in (("features", features), ("subnet", subnet)):
        if given is not None and name not in used:
            raise CheckpointError(f"{path} must hold a detector with {name} of your own, but got one without")
    return found
