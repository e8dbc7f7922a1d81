"""benchmarks/mvtec.py, which summarizes cells of `benchmarks.reproduce sanflow`."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import mvtec as front
from benchmarks.reproduce.options import parse
from benchmarks.reproduce.planning import plan
from benchmarks.reproduce.tables import table
from benchmarks.shared.store import CellStore


def test_summary_is_made_from_the_cells_of_reproduce(mvtec: Path, tmp_path: Path) -> None:
    words = ["--data", str(mvtec), "--epochs", "toothbrush=2", "screw=1", "--seeds", "0", "1", "--image-size", "64"]
    words += ["--backbone", "resnet18", "--weights", "random", "--set", "couplings.position_channels=16"]
    words += ["--cells", str(tmp_path / "cells.jsonl"), "--output", str(tmp_path / "front.json")]
    options = parse(front.reproduce_words(front.arguments(words)))
    store = CellStore(tmp_path / "cells.jsonl", notice=pytest.fail)
    values = iter([0.5, 0.6, 0.7, 0.9])
    for c in plan(table("sanflow"), table("sanflow").rows, options, store):
        assert c.cell is not None
        metrics = dict.fromkeys(front.METRICS, next(values))
        result = {"metrics": metrics, "epochs": 2, "steps": 1, **dict.fromkeys(front.TIMES, 1)}
        record = {"commit": str(c.key), "command": "", "versions": {}, "machine": ""}
        store.append(c.key, c.cell.settings, result, record)
    assert front.main(words) == 0
    found = json.loads((tmp_path / "front.json").read_text())
    keys = [(category, seed) for category in ("screw", "toothbrush") for seed in (0, 1)]
    assert [(c["category"], c["seed"]) for c in found["cells"]] == keys
    assert [c["commit"] for c in found["cells"]] == [f"SANFlow, {category}, seed {seed}" for category, seed in keys]
    assert found["seeds"] == [0, 1]
    assert found["commit"]
    # Cells are planned seed by seed, toothbrush first: screw has 0.6 and 0.9.
    screw = found["means"]["screw"]["aupro"]
    assert (screw["mean"], screw["seeds"]) == (0.75, 2)
    assert screw["std"] == pytest.approx(statistics.stdev([0.6, 0.9]), abs=1e-4)
    assert found["recipe"] == {"set": {"couplings.position_channels": 16}, "fit": {}}
    assert found["command"].startswith("python benchmarks/mvtec.py --data")


def test_script_runs_from_the_root() -> None:
    root = Path(front.__file__).parents[1]
    words = [sys.executable, "benchmarks/mvtec.py", "--help"]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "--epochs" in done.stdout
