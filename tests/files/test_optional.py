import sys
import tomllib
from pathlib import Path

import pytest

from semflow._optional import EXTRAS, find_optional, import_optional
from semflow.errors import ConfigError


def test_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "ray.data", "timm"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r'^ray.data must be installed, .*; run pip install "semflow\[ray\]"$'):
        import_optional("ray.data")
    with pytest.raises(ConfigError, match=r"; run pip install timm$"):
        import_optional("timm")
    with pytest.raises(ConfigError, match=r"^ray must be installed"):
        find_optional("ray")


def test_installed_package_is_found_and_imported() -> None:
    import numpy

    assert import_optional("numpy") is numpy
    assert (find_optional("numpy") / "__init__.py").is_file()


def test_every_extra_is_declared() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(EXTRAS.values()) <= set(project["optional-dependencies"])
