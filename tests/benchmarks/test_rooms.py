"""The commands that the documentation and the committed results name are there, and say what they do."""

import re
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "benchmarks").rglob("*.md"))


def named() -> set[str]:
    """Modules of `benchmarks` that a page says to run, or that a file of results was made by."""
    found = {name for page in PAGES for name in re.findall(r"python -m (benchmarks[\w.]*\w)", page.read_text("utf-8"))}
    for path in (ROOT / "benchmarks" / "results").rglob("*.json"):
        found |= set(re.findall(r'"command": "python -m (benchmarks[\w.]*\w)', path.read_text("utf-8")))
    return found


def test_every_room_s_command_is_documented() -> None:
    rooms = {path.parent.name for path in (ROOT / "benchmarks").glob("*/__main__.py")}
    assert rooms
    assert {f"benchmarks.{room}" for room in rooms} <= named()


@pytest.mark.parametrize("module", sorted(named()))
def test_a_documented_command_is_there(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if module == "benchmarks.speed.against_sklearn":
        pytest.importorskip("sklearn", reason="the other side is an extra: semflow[bench]")
    package = find_spec(module).submodule_search_locations is not None
    running = f"{module}.__main__" if package else module
    monkeypatch.delitem(sys.modules, running, raising=False)  # another test may have imported it
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(running, run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")
