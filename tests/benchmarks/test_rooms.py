"""The rooms of benchmarks/: who takes from whom, the map of them, and the commands that pages and results name."""

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
ROOMS = sorted(path.parent.name for path in BENCHMARKS.glob("*/__init__.py"))
TAKES_FROM = {"reproduce": {"paper", "shared"}, "growth": {"speed", "shared"}, "paper": set(), "shared": set()}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted(BENCHMARKS.rglob("*.md"))


def named() -> set[str]:
    """Modules of `benchmarks` that a page says to run, or that a file of results was made by."""
    found = {name for page in PAGES for name in re.findall(r"python -m (benchmarks[\w.]*\w)", page.read_text("utf-8"))}
    for path in (BENCHMARKS / "results").rglob("*.json"):
        found |= set(re.findall(r'"command": "python -m (benchmarks[\w.]*\w)', path.read_text("utf-8")))
    return found


def imported(path: Path) -> Iterator[str]:
    """What a file takes from benchmarks, as dotted names below it."""
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


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_takes_from_shared_and_itself(room: str) -> None:
    taken = {name.partition(".")[0] for path in (BENCHMARKS / room).glob("*.py") for name in imported(path)}
    assert taken - {room} <= TAKES_FROM.get(room, {"shared"})


def test_what_other_processes_run_is_no_part_of_a_main() -> None:
    """A process that is spawned does not import the __main__ of a package, and would not find the function."""
    wrong = [f"{path}: {name}" for path in BENCHMARKS.rglob("*.py") for name in imported(path) if "__main__" in name]
    assert wrong == []
    for path in BENCHMARKS.glob("*/__main__.py"):
        assert not re.search(r"ProcessPoolExecutor|get_context|\bProcess\(", path.read_text("utf-8")), path


def test_the_map_has_every_room_and_every_command_of_one_file() -> None:
    text = (BENCHMARKS / "README.md").read_text("utf-8")
    files = {path.name for path in BENCHMARKS.glob("*.py")} - {"__init__.py"}
    shown = re.findall(r"^\| `([\w.]+)/?` \|", text, re.MULTILINE)
    assert sorted(shown) == sorted({*ROOMS, *files})


def test_every_room_s_command_is_documented() -> None:
    rooms = {path.parent.name for path in BENCHMARKS.glob("*/__main__.py")}
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
