"""Without the extra: one line that says how to get it; and `import semflow.app.scale` needs nothing of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.scale_cases import score_words
from semflow.app.cli import main


@pytest.mark.parametrize("package", ["pyarrow", "ray"])
def test_what_is_missing_is_said(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pyarrow", "ray"):
        monkeypatch.setitem(sys.modules, name, None if name == package else sys)  # type: ignore[arg-type]
    assert main(score_words(tmp_path, tmp_path, tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {package} must be installed, but got ")
    assert said.endswith('; run pip install "semflow[ray]"\n')
    assert not (tmp_path / "out").exists()


def test_nothing_of_ray_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, semflow.app.scale, semflow.app.cli.score; print({'ray', 'pyarrow', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "set()", done.stderr
