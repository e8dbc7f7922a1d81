"""The tables of README."""

import re

from benchmarks.readme_table import ROOT, TABLES, Figures, accuracy, filled, main, read, speed

README = (ROOT / "README.md").read_text("utf-8")


def cell(category: str, seed: int, value: float) -> dict[str, object]:
    return {
        "category": category, "seed": seed, "epochs": 7, "image_auroc": value, "pixel_auroc": value, "aupro": value,
    }  # fmt: skip


RECORD = {"command": "python -m x", "machine": "a machine", "versions": {"python": "3", "torch": "2"}}
FLOW = {"cells": [cell("screw", 0, 0.5), cell("screw", 1, 0.7), cell("nut and screw", 0, 0.5)], **RECORD}


def peer(name: str, category: str) -> dict[str, object]:
    found = {category: {"ours": {"mean": 75.0, "std": None, "seeds": [0]}}, "nut and screw": {"ours": None}}
    return {"row": name, "metrics": {name: {"categories": found} for name in ("image_auroc", "pixel_auroc", "aupro")}}


PEERS = {"rows": [peer("PaDiM", "screw"), peer("elsewhere", "nut")], "provenance": RECORD}
SPEED = {
    "ratios": {
        "fastflow_train": 0.8,
        "fastflow_train_batch1": 0.9,
        "cflow_infer_batch1": 1.1,
        "sanflow_train_memory": 0.5,
    },
    "ranges": {
        "fastflow_train": {"low": 0.75, "high": 0.91},
        "fastflow_train_batch1": {"low": 0.9, "high": 0.9},
        "sanflow_train_memory": {"low": 0.5, "high": 0.5},
    },
    "skipped": {"fastflow_infer": "no anomalib"},
    **RECORD,
}


def test_readme_matches_the_committed_results() -> None:
    names = set(re.findall(r"<!-- figures: (\w+) -->", README))
    assert names == set(TABLES)
    assert filled(README, read()) == README, "python -m benchmarks.readme_table"
    assert main(["--check"]) == 0


def test_filled_replaces_a_changed_figure() -> None:
    changed = re.sub(r"SANFlow \| (\d+) epochs \| 3 \| \D*\d", "SANFlow | \\1 epochs | 3 | 1", README)
    assert changed != README
    assert filled(changed, read()) == README


def test_accuracy_has_means_and_bold_best_figures() -> None:
    lines = accuracy(Figures(SPEED, FLOW, PEERS)).splitlines()
    assert lines[2] == "| screw | SANFlow | 7 epochs | 2 | 60.0 ± 14.1 | 60.0 ± 14.1 | 60.0 ± 14.1 |"
    assert lines[3] == "| screw | PaDiM | one pass | 1 | **75.0** | **75.0** | **75.0** |"
    assert lines[4].startswith("| nut and screw | SANFlow |")  # not measured for the peers
    assert lines[5] == ""
    assert "elsewhere" not in "".join(lines)
    assert accuracy(Figures(SPEED, FLOW, None)).count("**") == 12


def test_speed_lists_slower_and_unmeasured_cases() -> None:
    made = speed(Figures(SPEED, FLOW, None))
    assert "| training step of FastFlow's flows | anomalib | 0.80 (0.75 to 0.91) |" in made
    assert "| inference of FastFlow's flows | anomalib | not measured: no anomalib |" in made
    assert "| training step of FastFlow's flows, batches of 1 | anomalib | 0.90 (0.90 to 0.90) |" in made
    assert "CFLOW" not in made  # faster at another size
    assert "| measured | compared with | times as much |" in made
    assert "| FrEIA | 0.50 (0.50 to 0.50) |" in made
    assert made.endswith("`python -m x`; a machine; torch 2.")
    assert speed(Figures(SPEED | {"seed": 0}, FLOW, None)).endswith("torch 2; seed 0.")
