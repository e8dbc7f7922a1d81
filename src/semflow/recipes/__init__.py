"""Papers as recipes over shared components: a recipe returns a `semflow.detectors.Detector`."""

from .cflow_ad import cflow_ad
from .cs_flow import cs_flow
from .differnet import differnet
from .fastflow import fastflow
from .groups import (
    AnyBackbone,
    Backbone,
    ConvCouplings,
    Couplings,
    PairedCouplings,
    PyramidCouplings,
    SemanticStatistics,
    StatisticsPrediction,
    build_base,
    build_features,
)
from .memory_flow import memory_flow
from .msflow import msflow
from .padim import padim
from .patchcore import patchcore
from .registry import RECIPES, build, recipe
from .remembering import StoredMemory, remember
from .sanflow import ABLATIONS, sanflow
from .settings import plain_settings, resolve_settings, setting_names
from .spade import spade
from .storage import load, save

__all__ = [
    "ABLATIONS", "RECIPES", "AnyBackbone", "Backbone", "ConvCouplings", "Couplings", "PairedCouplings",
    "PyramidCouplings", "SemanticStatistics", "StatisticsPrediction", "StoredMemory", "build", "build_base",
    "build_features", "cflow_ad", "cs_flow", "differnet", "fastflow", "load", "memory_flow", "msflow", "padim",
    "patchcore", "plain_settings", "recipe", "remember", "resolve_settings", "sanflow", "save", "setting_names",
    "spade",
]  # fmt: skip
