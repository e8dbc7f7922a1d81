"""Papers as thin recipes over shared components: `recipe(...)` gives a `semflow.detectors.Detector`."""

from .ablations import ABLATIONS
from .cflow_ad import cflow_ad
from .cs_flow import cs_flow
from .differnet import differnet
from .fastflow import fastflow
from .msflow import msflow
from .recipe import recipe
from .registry import RECIPES, build, load
from .sanflow import sanflow

__all__ = [
    "ABLATIONS",
    "RECIPES",
    "build",
    "cflow_ad",
    "cs_flow",
    "differnet",
    "fastflow",
    "load",
    "msflow",
    "recipe",
    "sanflow",
]
