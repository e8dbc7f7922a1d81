"""Export of detectors to files that run without this library: torch.export, ONNX and OpenVINO.

Each name is imported on first use, so that running an ONNX or OpenVINO file imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .check import compare
    from .cost import Cost
    from .exported import ExportedDetector, load
    from .graph import DetectorGraph, trace
    from .metadata import Metadata
    from .runtime import Format, Runner, open_runner, run_image
    from .saving import Exported, save

_MODULES = {
    "Cost": "cost",
    "DetectorGraph": "graph", "Exported": "saving", "ExportedDetector": "exported", "Format": "runtime",
    "Metadata": "metadata", "Runner": "runtime", "compare": "check", "load": "exported", "open_runner": "runtime",
    "run_image": "runtime", "save": "saving", "trace": "graph",
}  # fmt: skip

__all__ = [
    "Cost",
    "DetectorGraph", "Exported", "ExportedDetector", "Format", "Metadata", "Runner", "compare", "load", "open_runner",
    "run_image", "save", "trace",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module 'semflow.app.export' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
