"""Fixtures for the rows of bad input: a run that is trained once, and a workspace."""

from pathlib import Path
from typing import Any

import pytest

from helpers.bad_rows import Workspace
from helpers.bad_table import trained_run
from semflow.recipes import load


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("bad_input"))


@pytest.fixture(scope="session")
def detector(run: Path) -> Any:
    return load(run)


@pytest.fixture
def workspace(tmp_path: Path, run: Path, detector: Any, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path, run, detector)
