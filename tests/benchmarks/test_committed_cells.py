"""The committed cells are those of the commands that made them: a command would find each of them done."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from benchmarks.reproduce import peers, planning
from benchmarks.reproduce.options import parse
from benchmarks.reproduce.tables import table
from benchmarks.retrofit import cells as retrofit_cells
from benchmarks.retrofit.cells import RetrofitCell, Setup
from benchmarks.shared.datasets import Data
from benchmarks.shared.store import CellStore, digest

import semflow

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
CELLS = {path: json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("*/cells/*.json"))}
REPORTS = [path for path in sorted(RESULTS.glob("*/*.json")) if "python -m benchmarks.reproduce" in path.read_text()]


def test_a_cell_has_the_name_of_its_configuration() -> None:
    assert len(CELLS) > 300
    assert [path.name for path, cell in CELLS.items() if digest(cell["config"]) != path.stem] == []


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_table_s_command_finds_its_cells(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planned anew from the command's words, with the versions and the fingerprints of the data that it had then."""
    report = json.loads(path.read_text("utf-8"))
    folder = path.parent / "cells"
    configs = [cell["config"] for cell_path, cell in CELLS.items() if cell_path.parent == folder]
    prints = {config["data"]["category"]: config["data"]["fingerprint"] for config in configs}
    monkeypatch.setattr(semflow, "__version__", configs[0]["semflow"])
    monkeypatch.setattr(peers, "anomalib_version", lambda: configs[0]["anomalib"])
    monkeypatch.setattr(peers, "require_anomalib", lambda: None)
    monkeypatch.setattr(planning, "categories", lambda kind, root: sorted(prints))
    monkeypatch.setattr(Data, "fingerprint", lambda data: prints[data.category])
    options = parse(shlex.split(report["provenance"]["command"])[3:])
    chosen = table(options.table)
    planned = planning.plan(chosen, planning.choose_rows(chosen, options), options)
    store = CellStore(folder, notice=pytest.fail)
    done = [cell for cell in planned if store.get(cell.cell.config())]
    assert (len(done), len(planned)) == (report["done"], report["planned"])


RETROFIT = {path: cell for path, cell in CELLS.items() if cell["config"].get("benchmark") == "retrofit"}


def test_the_retrofit_s_cells_are_named_as_it_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert RETROFIT
    wrong = []
    for path, kept in RETROFIT.items():
        config: dict[str, Any] = kept["config"]
        monkeypatch.setattr(retrofit_cells, "__version__", config["semflow"])
        monkeypatch.setattr(retrofit_cells, "versions", lambda name, kept=config: {name: kept[name]})
        data = Data(config["data"]["kind"], "data", config["data"]["category"])
        setup = Setup(**{name: config[name] for name in Setup.__annotations__} | {"strides": tuple(config["strides"])})
        cell = RetrofitCell(
            config["library"], config["variant"], data, config["data"]["fingerprint"], config["seed"], setup
        )
        if digest(cell.config()) != path.stem:
            wrong.append(path.name)
    assert wrong == []
