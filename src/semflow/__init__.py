"""Normalizing-flow components for visual anomaly detection.

The names below load what they need when they are first used: `import semflow` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import (
        adapters,
        bases,
        data,
        detectors,
        export,
        features,
        flows,
        functional,
        hub,
        metrics,
        nn,
        objectives,
        recipes,
        synthesis,
        testing,
    )
    from .adapters import as_flow, with_statistics
    from .detectors import Detector, calibrate, evaluate, fit
    from .nn import InverseGammaVariance
    from .recipes import load

_ROOMS = (
    "adapters", "bases", "cli", "data", "detectors", "errors", "export", "features", "flows", "functional", "hub",
    "metrics", "nn", "objectives", "recipes", "report", "scale", "synthesis", "testing",
)  # fmt: skip
_NAMES = {
    "Detector": "detectors", "InverseGammaVariance": "nn", "as_flow": "adapters", "calibrate": "detectors",
    "evaluate": "detectors", "fit": "detectors", "load": "recipes", "with_statistics": "adapters",
}  # fmt: skip

__all__ = [
    "Detector", "InverseGammaVariance", "adapters", "as_flow", "bases", "calibrate", "data", "detectors", "evaluate",
    "export", "features", "fit", "flows", "functional", "hub", "load", "metrics", "nn", "objectives", "recipes",
    "synthesis", "testing", "with_statistics",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name in _NAMES:
        return getattr(import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module 'semflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS, *_NAMES})
