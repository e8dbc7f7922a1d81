"""Recipes by name, and detectors out of run directories."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from semflow.detectors import Detector
from semflow.errors import CheckpointError, ConfigError
from semflow.training import load_into, read_config

from .cflow_ad import cflow_ad
from .cs_flow import cs_flow
from .differnet import differnet
from .fastflow import fastflow
from .msflow import msflow
from .sanflow import sanflow

__all__ = ["RECIPES", "build", "load"]

RECIPES: dict[str, Callable[..., Detector]] = {
    "sanflow": sanflow,
    "cflow_ad": cflow_ad,
    "fastflow": fastflow,
    "differnet": differnet,
    "cs_flow": cs_flow,
    "msflow": msflow,
}


def build(name: str, **arguments: Any) -> Detector:
    """The detector of a recipe.

    Raises:
        ConfigError: no such recipe.

    Example:
        >>> detector = build("sanflow", backbone="resnet18", weights="random", blocks=1)
        >>> detector.config["recipe"], detector.config["arguments"]["blocks"]
        ('sanflow', 1)
    """
    if name not in RECIPES:
        raise ConfigError(f"recipe must be one of {', '.join(RECIPES)}, but got {name!r}")
    return RECIPES[name](**arguments)


def load(run: str | Path) -> Detector:
    """The trained detector of a run directory, in eval mode. The run holds its backbone's weights: nothing is fetched.

    Raises:
        CheckpointError: not a run directory, of another version, broken, or not trained to the end.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from semflow.data import Sample
        >>> from semflow.training import fit
        >>> detector = build("cflow_ad", backbone="test_efficientnet", weights="random", strides=(8,), blocks=1)
        >>> good = [Sample(torch.rand(3, 32, 32), 0, None, f"{i}.png") for i in range(2)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     detector = fit(detector, good, epochs=1, output=f"{folder}/run", progress=False)
        ...     same = load(f"{folder}/run")
        >>> torch.equal(same.predict(good[0].image[None]).score, detector.predict(good[0].image[None]).score)
        True
    """
    config = read_config(run)
    if config.get("recipe") not in RECIPES:
        raise CheckpointError(f"{run}: of recipe {config.get('recipe')!r}, expected one of {', '.join(RECIPES)}")
    try:
        detector = build(config["recipe"], **{**config["arguments"], "weights": "random"})
    except (TypeError, KeyError, ConfigError, RuntimeError, ArithmeticError, MemoryError) as error:  # torch's, of sizes
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{run}: made by another version of semflow, its options do not fit: {reason}") from error
    detector.config = {"recipe": config["recipe"], "arguments": config["arguments"]}  # its weights are those of the run
    return load_into(detector, run).eval()
