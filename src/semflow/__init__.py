"""Normalizing-flow components for visual anomaly detection.

Modules and names are imported on first use, so `import semflow` itself does not import torch. The types of the public
names are in `__init__.pyi`.
"""

from importlib import import_module
from typing import Any

from semflow._version import __version__ as __version__

_MODULES = (
    "adapters", "app", "bases", "data", "detectors", "errors", "features", "files", "flows", "functional", "metrics",
    "nn", "objectives", "recipes", "synthesis", "testing", "training",
)  # fmt: skip
_NAMES = {
    "Detector": "detectors", "InverseGammaVariance": "nn", "as_flow": "adapters", "calibrate": "training",
    "evaluate": "training", "fit": "training", "load": "recipes", "save": "recipes", "with_memory": "adapters",
    "with_statistics": "adapters",
}  # fmt: skip

__all__ = [
    *_MODULES,
    *_NAMES,
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in _NAMES:
        return getattr(import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module 'semflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_NAMES})
