"""The committed reports are made from the committed cells."""

import json
import shlex
from pathlib import Path

import pytest
from benchmarks import why
from benchmarks.reproduce import __main__ as reproduce
from benchmarks.retrofit import __main__ as retrofit
from benchmarks.shared.store import CellStore

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
STUDIES = sorted(RESULTS.rglob("cells.jsonl"))
REPORTS = sorted(path for study in STUDIES for path in study.parent.glob("*.json"))
COMMANDS = {"benchmarks.reproduce": reproduce, "benchmarks.retrofit": retrofit, "benchmarks.why": why}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: str(path.parent.relative_to(RESULTS)))
def test_committed_cells_are_complete(path: Path) -> None:
    cells = CellStore(path, notice=pytest.fail).read()
    assert cells
    assert all({"command", "commit", "versions", "machine"} <= cell["record"].keys() for (cell,) in cells.values())


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: str(path.relative_to(RESULTS).with_suffix("")))
def test_committed_report_is_made_from_its_cells(path: Path, tmp_path: Path) -> None:
    report = json.loads(path.read_text("utf-8"))
    command = shlex.split(report.get("provenance", report)["command"])
    words = command[3 : command.index("--output")] + command[command.index("--output") + 2 :]
    (tmp_path / "cells.jsonl").write_bytes((path.parent / "cells.jsonl").read_bytes())
    chart = [] if command[2] != "benchmarks.reproduce" or "--no-chart" in words else ["--no-chart"]
    assert COMMANDS[command[2]].main([*words, *chart, "--output", str(tmp_path)]) == 0
    made = json.loads((tmp_path / path.name).read_text("utf-8"))
    for name in ("provenance", "command", "versions", "machine"):
        made.pop(name, None)
        report.pop(name, None)
    assert made == report
