"""Model shared by the tests."""

from pathlib import Path

import pytest

from helpers.scale_cases import make_run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("tiny"))
