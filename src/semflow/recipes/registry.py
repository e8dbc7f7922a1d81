"""Recipes: registered functions whose detectors can be saved and built again."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

import torch

from semflow._defaults import own_defaults
from semflow._validation import check_arguments, plain_size
from semflow.detectors import Detector, Provenance
from semflow.errors import ConfigError

from .settings import complete, plain_settings, resolve_settings

P = ParamSpec("P")

RECIPES: dict[str, Callable[..., Detector]] = {}
"""Registered recipes by name."""


def recipe(function: Callable[P, Detector]) -> Callable[P, Detector]:
    """Register a function that builds a detector, so that `semflow.load` can build the detector again.

    The function needs a parameter `seed`: weights and permutations are drawn from it, and torch's global generator is
    left as it was. Arguments are checked by their annotations and recorded in `detector.provenance`. Parameters named
    `image_size`, `training` and `synthesis` set the defaults of `semflow.fit` and of the command line.

    Args:
        function: annotated function whose arguments are numbers, strings, tuples, groups of settings, or a backbone.

    Example:
        >>> from semflow.bases import StandardNormal
        >>> from semflow.features import TimmFeatures
        >>> from semflow.flows import coupling_stack
        >>> @recipe
        ... def plain(name: str = "resnet18", seed: int = 0) -> Detector:
        ...     features = TimmFeatures(name, "random", (8,), seed=seed)
        ...     return Detector(features, [coupling_stack(features.channels[0], 2)], StandardNormal())
        >>> plain(seed=3).provenance.arguments, RECIPES.pop("plain") is plain
        ({'name': 'resnet18', 'seed': 3}, True)
    """
    signature, name, module = inspect.signature(function), function.__name__, function.__module__
    registered = RECIPES.get(name)
    if registered is not None and registered.__module__ != module:
        raise ConfigError(
            f"recipe {name} must be registered by one module, but got {registered.__module__} and {module}"
        )

    @functools.wraps(function)
    @own_defaults()
    def make(*args: P.args, **kwargs: P.kwargs) -> Detector:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for argument, value in bound.arguments.items():
            bound.arguments[argument] = complete(function, argument, value)
        check_arguments(function, bound.arguments)
        arguments = plain_settings(bound.arguments)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(bound.arguments["seed"])  # leaves the generators of GPUs alone
            detector = function(*bound.args, **bound.kwargs)
        own = detector.provenance  # of a recipe that it builds on, or with settings that the function derived
        detector.provenance = Provenance(
            name,
            module,
            arguments,
            image_size=plain_size(bound.arguments.get("image_size", own.image_size)),
            training=own.training or bound.arguments.get("training"),
            synthesis=own.synthesis or bound.arguments.get("synthesis"),
        )
        return detector

    RECIPES[name] = make
    return make


def build(recipe: str | Callable[..., Detector], settings: Mapping[str, Any] | None = None) -> Detector:
    """Build the detector of a recipe from dotted settings.

    Args:
        recipe: a recipe or its registered name.
        settings: see `resolve_settings`; what they leave out keeps the recipe's default.

    Example:
        >>> detector = build("sanflow", {"backbone": "resnet18", "backbone.weights": "random", "couplings.blocks": 1})
        >>> detector.provenance.arguments["couplings"]["blocks"]
        1
    """
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ConfigError(f"recipe must be one of {', '.join(RECIPES)}, but got {recipe!r}")
        recipe = RECIPES[recipe]
    return recipe(**resolve_settings(recipe, settings or {}))
