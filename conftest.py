"""Doctests: skip modules whose library is missing, and start every example from the same seed."""

from importlib.util import find_spec

import pytest

NEED = {
    "adapters/anomalib.py": "anomalib",
    "adapters/zuko_lazy.py": "zuko",
}

collect_ignore = [f"src/semflow/{path}" for path, library in NEED.items() if find_spec(library) is None]


@pytest.fixture(autouse=True)
def same_chance(request: pytest.FixtureRequest) -> None:
    """Seed torch before each docstring example, so that its output is reproducible."""
    if isinstance(request.node, pytest.DoctestItem):
        import torch

        torch.manual_seed(0)
