"""Papers as thin recipes over shared components: `recipe(...)` gives a `semflow.detectors.Detector`."""

from .registry import RECIPES, build, load
from .sanflow import sanflow

__all__ = ["RECIPES", "build", "load", "sanflow"]
