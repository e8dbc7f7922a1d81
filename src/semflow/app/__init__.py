"""The application: command line, reports, export, the model hub and scoring on a cluster.

No component of the library imports from here.
"""

from importlib import import_module
from typing import Any

__all__ = ["cli", "export", "hub", "report", "scale"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'semflow.app' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
