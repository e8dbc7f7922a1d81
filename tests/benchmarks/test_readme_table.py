"""The tables of README and of the results."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from benchmarks.readme_table import PAGES, TABLES, accuracy, filled, main, speed

README = PAGES[0].read_text("utf-8")
RECORD = {"command": "python -m x --report", "machine": "a machine", "versions": {"python": "3", "torch": "2"}}


def row(name: str, **means: float | None) -> dict[str, object]:
    ours = {c: {"ours": m and {"mean": m, "std": 1.0, "seeds": [0, 1]}} for c, m in means.items()}
    return {
        "row": name,
        "metrics": {metric: {"categories": ours} for metric in ("image_auroc", "pixel_auroc", "aupro")},
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    table: dict[str, Any] = {"categories": ["screw", "nut"], "epochs": {"screw": [7], "nut": [9]}, "provenance": RECORD}
    table["rows"] = [row("SANFlow", screw=60.0, nut=50.0), row("PaDiM", screw=80.0, nut=80.0)]
    table["rows"].append(row("PaDiM, anomalib", screw=75.0, nut=None))
    ratios = {
        "fastflow_train": 0.8,
        "fastflow_train_batch1": 0.9,
        "cflow_infer_batch1": 1.1,
        "sanflow_train_memory": 0.5,
    }
    ranges = {name: {"low": ratio, "high": ratio + 0.1} for name, ratio in ratios.items()}
    measured = {"ratios": ratios, "ranges": ranges, "skipped": {"fastflow_infer": "no anomalib"}, "seed": 0, **RECORD}
    (tmp_path / "sanflow").mkdir()
    (tmp_path / "sanflow" / "sanflow.json").write_text(json.dumps(table))
    (tmp_path / "speed.json").write_text(json.dumps(measured))
    return tmp_path


def test_pages_match_the_committed_results() -> None:
    texts = [page.read_text("utf-8") for page in PAGES]
    assert sorted(re.findall(r"<!-- figures: (\w+) -->", "".join(texts))) == sorted(TABLES)
    assert [filled(text) for text in texts] == texts, "python -m benchmarks.readme_table"
    assert main(["--check"]) == 0


def test_filled_replaces_a_changed_figure() -> None:
    changed = re.sub(r"SANFlow \| 3 \| \D*\d", "SANFlow | 3 | 1", README)
    assert changed != README
    assert filled(changed) == README


def test_accuracy_has_means_and_bold_best_figures(results: Path) -> None:
    lines = accuracy(results).splitlines()
    assert lines[2:5] == [
        "| screw | SANFlow | 2 | 60.0 ± 1.0 | 60.0 ± 1.0 | 60.0 ± 1.0 |",
        "| screw | PaDiM, anomalib | 2 | **75.0 ± 1.0** | **75.0 ± 1.0** | **75.0 ± 1.0** |",
        "| nut | SANFlow | 2 | **50.0 ± 1.0** | **50.0 ± 1.0** | **50.0 ± 1.0** |",
    ]
    assert lines[5:] == ["", "`python -m x`; a machine; torch 2."]


def test_speed_lists_slower_and_unmeasured_cases(results: Path) -> None:
    made = speed(results)
    assert "| training step of FastFlow's flows | anomalib | 0.80 (0.80 to 0.90) |" in made
    assert "| inference of FastFlow's flows | anomalib | not measured: no anomalib |" in made
    assert "| training step of FastFlow's flows, batches of 1 | anomalib | 0.90 (0.90 to 1.00) |" in made
    assert "CFLOW" not in made  # faster at another size
    assert "| measured | compared with | times as much |" in made
    assert "| FrEIA | 0.50 (0.50 to 0.60) |" in made
    assert made.endswith("`python -m x`; a machine; torch 2; seed 0.")
