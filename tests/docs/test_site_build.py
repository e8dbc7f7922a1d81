"""The site builds without a warning; what docstrings look like before Sphinx reads them."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MISSING = [name for name in ("sphinx", "furo", "mkdocs", "material") if find_spec(name) is None]
needs_extra = pytest.mark.skipif(bool(MISSING), reason=f"the extra docs installs {', '.join(MISSING)}")


@pytest.mark.slow
@needs_extra
def test_the_site_builds_and_its_halves_link_to_each_other(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "docs" / "build.py"), "--output", str(tmp_path / "site")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert ended.returncode == 0, ended.stderr
    components = (tmp_path / "site" / "components.html").read_text(encoding="utf-8")
    assert 'href="api/flows.html#semflow.flows.AffineCoupling"' in components
    nested = (tmp_path / "site" / "adapters" / "freia.html").read_text(encoding="utf-8")
    assert 'href="../api/' in nested
    assert 'href="../components.html"' in (tmp_path / "site" / "api" / "flows.html").read_text(encoding="utf-8")


@needs_extra
def test_plain_formulas_stay_plain() -> None:
    from sitebuild.reference import escaped, public_names, untyped

    lines = ["log |det dz/dx| of `f(*a)` and *b*, x_ too", "", ">>> f(*a) | b", "1 | 2", "", "c*d"]
    assert escaped(lines) == [r"log \|det dz/dx\| of `f(*a)` and \*b\*, x\_ too", "", *lines[2:5], r"c\*d"]
    assert untyped(["A map: of x.", "", "Returns:", "    The labels: in order."], attribute=True) == [
        ": A map: of x.", "", "Returns:", "    : The labels: in order.",
    ]  # fmt: skip
    assert public_names()["semflow.flows.coupling.AffineCoupling"] == "semflow.flows.AffineCoupling"
