"""benchmarks/mvtec.py: the same cells as `benchmarks.reproduce sanflow`, in one small file."""

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


def test_it_reads_the_cells_that_reproduce_keeps(mvtec: Path, tmp_path: Path) -> None:
    words = ["--data", str(mvtec), "--epochs", "toothbrush=2", "screw=1", "--seeds", "0", "1", "--image-size", "64"]
    words += ["--backbone", "resnet18", "--weights", "random", "--set", "position_channels=16"]
    words += ["--cells", str(tmp_path / "cells"), "--output", str(tmp_path / "front.json")]
    options = parse(front.reproduce_words(front.parse(words)))
    store = CellStore(tmp_path / "cells", notice=pytest.fail)
    values = iter([0.5, 0.6, 0.7, 0.9])
    for c in plan(table("sanflow"), table("sanflow").rows, options):
        metrics = dict.fromkeys(front.METRICS, next(values))
        store.put(
            c.cell.config(),
            {"metrics": metrics, "epochs": 2, **dict.fromkeys(front.TIMES, 1)},
            {"commit": f"of {c.cell.label}"},
        )
    assert front.main(words) == 0
    found = json.loads((tmp_path / "front.json").read_text())
    assert [(c["category"], c["seed"]) for c in found["cells"]] == [
        (category, seed) for category in ("screw", "toothbrush") for seed in (0, 1)
    ]
    assert [c["commit"] for c in found["cells"]] == [
        f"of sanflow {c['category']} seed {c['seed']}" for c in found["cells"]
    ]
    assert found["seeds"] == [0, 1]
    assert found["commit"]
    # Cells come seed by seed, toothbrush first: screw has 0.6 and 0.9.
    screw = found["means"]["screw"]["aupro"]
    assert (screw["mean"], screw["seeds"]) == (0.75, 2)
    assert screw["std"] == pytest.approx(statistics.stdev([0.6, 0.9]), abs=1e-4)
    assert found["recipe"] == {"set": {"position_channels": 16}, "fit": {}}
    assert found["command"].startswith("python benchmarks/mvtec.py --data")


def test_it_runs_as_a_script_from_the_root() -> None:
    root = Path(front.__file__).parents[1]
    words = [sys.executable, "benchmarks/mvtec.py", "--help"]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout
