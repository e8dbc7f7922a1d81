"""Modules of the package that inherit from another library's classes are not collected where it is not installed."""

from importlib.util import find_spec

NEED = {
    "adapters/anomalib.py": "anomalib",
    "adapters/anomalib_base.py": "anomalib",
    "adapters/anomalib_recipe.py": "anomalib",
    "adapters/anomalib_retrofit.py": "anomalib",
    "adapters/zuko_lazy.py": "zuko",
}

collect_ignore = [f"src/semflow/{path}" for path, library in NEED.items() if find_spec(library) is None]
