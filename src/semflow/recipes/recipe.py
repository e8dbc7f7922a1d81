"""What every recipe does around its own lines: draw weights from the seed, and remember its arguments."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec

import torch

from semflow._validation import check_arguments
from semflow.detectors import Detector
from semflow.errors import ConfigError

__all__ = ["recipe"]

P = ParamSpec("P")


def recipe(function: Callable[P, Detector]) -> Callable[P, Detector]:
    """Make a recipe of a function that has a `seed` among its parameters and returns a detector.

    Weights and permutations are drawn from `seed`, and torch's global generator is left as it was. The function's name
    and all its arguments are kept in `detector.config`, from which `semflow.load` builds the detector again. An
    argument that does not exist, or is not of its annotated type, is a ConfigError.

    Example:
        >>> from semflow.bases import StandardNormal
        >>> from semflow.features import TimmFeatures
        >>> from semflow.flows import coupling_stack
        >>> @recipe
        ... def plain(backbone: str = "resnet18", weights: str = "hub", seed: int = 0) -> Detector:
        ...     features = TimmFeatures(backbone, weights, (8,), seed=seed)
        ...     return Detector(features, [coupling_stack(features.channels[0], 2)], StandardNormal())
        >>> plain(weights="random").config
        {'recipe': 'plain', 'arguments': {'backbone': 'resnet18', 'weights': 'random', 'seed': 0}}
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def build(*args: P.args, **kwargs: P.kwargs) -> Detector:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            names = ", ".join(signature.parameters)
            raise ConfigError(f"{function.__name__}: {error}; its arguments are {names}") from None
        check_arguments(function, bound.arguments)
        bound.apply_defaults()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(bound.arguments["seed"])  # not a GPU's too
            detector = function(*args, **kwargs)
        if not detector.config:  # it has one where a recipe is another with other arguments
            detector.config = {"recipe": function.__name__, "arguments": dict(bound.arguments)}
        return detector

    return build
