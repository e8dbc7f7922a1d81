"""`semflow score` without Ray."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.scale_cases import score_words
from semflow.app.cli import main


@pytest.mark.parametrize("package", ["pyarrow", "ray"])
def test_missing_package_is_named_with_its_extra(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pyarrow", "ray"):
        monkeypatch.setitem(sys.modules, name, None if name == package else sys)  # type: ignore[arg-type]
    assert main(score_words(tmp_path, tmp_path, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {package} must be installed, but got ")
    assert error.endswith('; run pip install "semflow[ray]"\n')
    assert not (tmp_path / "out").exists()


def test_import_of_scale_imports_no_ray() -> None:
    code = (
        "import sys, semflow.app.scale, semflow.app.cli.score; print({'ray', 'pyarrow', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "set()", done.stderr
