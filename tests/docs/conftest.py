"""What docs/build.py imports is imported from docs/, as it does; the site is built once for all tests that read it."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning of its build fails what asks for it."""
    missing = [name for name in ("sphinx", "furo", "mkdocs", "material") if find_spec(name) is None]
    if missing:
        pytest.skip(f"the extra docs installs {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, str(ROOT / "docs" / "build.py"), "--output", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert ended.returncode == 0, ended.stderr
    return folder
