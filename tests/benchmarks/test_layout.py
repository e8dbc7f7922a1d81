"""The folders of benchmarks/: their imports, their description, and the commands that pages and results name."""

import ast
import re
import runpy
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
FOLDERS = sorted(path.parent.name for path in BENCHMARKS.glob("*/__init__.py"))
IMPORTS = {
    "candidates": {"calibration", "shared"},
    "reproduce": {"paper", "shared"},
    "growth": {"speed", "shared"},
    "gpu": {"speed", "shared"},
    "paper": set(),
    "shared": set(),
}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted(BENCHMARKS.rglob("*.md"))


def named() -> set[str]:
    """Return the modules of `benchmarks` that a page or a file of results names as a command."""
    found = {name for page in PAGES for name in re.findall(r"python -m (benchmarks[\w.]*\w)", page.read_text("utf-8"))}
    for path in (BENCHMARKS / "results").rglob("*.json*"):
        found |= set(re.findall(r'"command": "python -m (benchmarks[\w.]*\w)', path.read_text("utf-8")))
    return found


def imported(path: Path) -> Iterator[str]:
    """Yield the imports of a file from benchmarks, as dotted names below it."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            names = [".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("benchmarks.") for name in names if name.startswith("benchmarks."))


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_imports_only_shared_and_itself(folder: str) -> None:
    found = {name.partition(".")[0] for path in (BENCHMARKS / folder).glob("*.py") for name in imported(path)}
    assert found - {folder} <= IMPORTS.get(folder, {"shared"})


def test_work_of_other_processes_is_not_in_a_main_module() -> None:
    """A spawned process does not import the __main__ of a package, and would not find the function."""
    for path in BENCHMARKS.glob("*/__main__.py"):
        assert not re.search(r"ProcessPoolExecutor|get_context|\bProcess\(", path.read_text("utf-8")), path


def test_readme_lists_every_folder_and_command() -> None:
    text = (BENCHMARKS / "README.md").read_text("utf-8")
    files = {path.name for path in BENCHMARKS.glob("*.py")} - {"__init__.py"}
    assert sorted(re.findall(r"^\| `([\w.]+)/?` \|", text, re.MULTILINE)) == sorted({*FOLDERS, *files})


def test_every_folder_with_a_command_is_documented() -> None:
    folders = {path.parent.name for path in BENCHMARKS.glob("*/__main__.py")}
    assert folders
    assert {f"benchmarks.{folder}" for folder in folders} <= named()


@pytest.mark.parametrize("module", sorted(named()))
def test_documented_command_has_help(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if module == "benchmarks.speed.against_sklearn":
        pytest.importorskip("sklearn", reason="needs the extra bench")
    package = find_spec(module).submodule_search_locations is not None
    running = f"{module}.__main__" if package else module
    monkeypatch.delitem(sys.modules, running, raising=False)  # another test may have imported it
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(running, run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")
