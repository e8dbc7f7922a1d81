"""Detectors as files that run without this library: torch.export, ONNX and OpenVINO.

The names below load what they need when they are first used: running a file of ONNX or OpenVINO imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .check import compare
    from .exported import ExportedDetector, load
    from .formats import Format
    from .graph import DetectorGraph, trace
    from .metadata import Metadata
    from .runtime import Runner, open_runner
    from .saving import Exported, save

_NAMES = {
    "DetectorGraph": "graph", "Exported": "saving", "ExportedDetector": "exported", "Format": "formats",
    "Metadata": "metadata", "Runner": "runtime", "compare": "check", "load": "exported", "open_runner": "runtime",
    "save": "saving", "trace": "graph",
}  # fmt: skip

__all__ = [
    "DetectorGraph", "Exported", "ExportedDetector", "Format", "Metadata", "Runner", "compare", "load", "open_runner",
    "save", "trace",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module 'semflow.app.export' has no attribute {name!r}")
