"""Figures of masks of `benchmarks.regions`."""

import torch
from benchmarks import regions
from benchmarks.shared.store import CellStore, Key


def test_figures_of_masks():
    truths = torch.zeros(3, 2, 2, dtype=torch.bool)
    truths[1, 0], truths[2, 0, 0] = True, True
    masks = torch.zeros_like(truths)
    masks[0, 1, 1] = masks[1, :, 0] = True
    found = regions.of_masks(masks, truths, torch.tensor([True, False, False]))
    assert found == {"seg_f1": 2 / (3 + 3), "iou": (1 / 3 + 0) / 2, "false_alarms": 1.0, "found": 0.5}


def test_table_has_the_mean_over_the_seeds(tmp_path):
    store = CellStore(tmp_path / "cells.jsonl")
    for seed in (0, 1):
        metrics = {
            f"{mask}_{name}": 0.25 + 0.5 * seed for mask in ("calibrated", "regions") for name in regions.METRICS
        }
        store.append(Key(regions.ROW, "brick", seed), {}, {"metrics": metrics}, {})
    assert regions.main(["--report", "--output", str(tmp_path)]) == 0
    lines = (tmp_path / "regions.md").read_text("utf-8").splitlines()
    assert lines[2] == "| brick | calibrated | 2 |" + " 50.0 ± 35.4 |" * 5
    assert lines[3].startswith("| brick | regions | 2 |")
