"""Settings of the whole suite: hypothesis without deadlines (machines are shared) and with fixed examples, one seed for
each docstring. `HYPOTHESIS_PROFILE=explore` looks for new examples, as one job of continuous integration does."""

import os
from collections.abc import Callable
from importlib.util import find_spec

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores; torch is not imported yet
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("semflow", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "semflow"))

OPTIONAL = ("FrEIA", "anomalib", "nflows", "normflows", "pyro", "zuko")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Examples of libraries that are not installed are skipped, and without a GPU the tests marked `cuda`."""
    missing = [name for name in OPTIONAL if find_spec(name) is None]
    needing = [item for item in items if item.get_closest_marker("cuda")]
    if needing:
        from helpers.devices import is_there

        for item in [] if is_there() else needing:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            source = "".join(example.source for example in item.dtest.examples)
            for name in missing:
                if f"from {name}" in source or f"import {name}" in source or f", {name}" in source:
                    item.add_marker(pytest.mark.skip(reason=f"needs {name}, an extra of semflow"))


@pytest.fixture
def record_property(record_property: Callable[[str, object], None]) -> Callable[[str, object], None]:
    """What a test counts, as the text that it becomes in a file: processes of xdist hand on no number of numpy's."""
    return lambda name, value: record_property(name, str(value))
