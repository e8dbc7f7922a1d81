"""Cells that are really trained."""

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.reproduce import __main__ as reproduce
from benchmarks.reproduce.cells import Cell, measure
from benchmarks.shared.datasets import Data
from benchmarks.shared.store import CellStore, Key

from semflow import evaluate, fit
from semflow.data import MVTecAD
from semflow.recipes import build

SMALL = {
    "backbone.name": "resnet18",
    "backbone.weights": "random",
    "backbone.strides": (8, 16),
    "image_size": 64,
    "couplings.blocks": 1,
    "couplings.position_channels": 16,
}
KEY = Key("SANFlow", "screw", 1)


@pytest.fixture
def cell(mvtec: Path) -> Cell:
    return Cell(KEY, "sanflow", SMALL, Data("mvtec", str(mvtec), "screw"), fit={"epochs": 3})


def test_cell_equals_training_and_evaluating_by_hand(cell: Cell, mvtec: Path) -> None:
    detector = build("sanflow", {**SMALL, "seed": 1})
    train, test = (MVTecAD(mvtec, split, 64, category="screw") for split in ("train", "test"))
    fit(detector, train, epochs=3, seed=1, progress=False)
    result = measure(cell)
    assert result["metrics"] == evaluate(detector, test)
    assert (result["epochs"], result["batch_size"], result["steps"]) == (3, 4, 6)
    assert (result["train_images"], result["test_images"], result["device"]) == (6, 6, "cpu")
    assert result["arguments"]["couplings"]["blocks"] == 1
    assert result["train_seconds"] > 0
    assert "best" not in result


def test_command_measures_a_cell_in_its_own_process(cell: Cell, mvtec: Path, tmp_path: Path) -> None:
    words = ["sanflow", "--data", str(mvtec), "--categories", "screw", "--seeds", "1", "--epochs", "3"]
    words += ["--backbone", "resnet18", "--weights", "random", "--image-size", "64", "--no-chart", "--threads", "1"]
    words += ["--set", "couplings.blocks=1", "couplings.position_channels=16", "backbone.strides=8,16"]
    assert reproduce.main([*words, "--output", str(tmp_path)]) == 0
    kept = CellStore(tmp_path / "cells.jsonl", notice=pytest.fail).latest()[KEY]
    assert kept["result"]["metrics"] == pytest.approx(measure(cell, threads=1)["metrics"], abs=1e-6)
    assert kept["result"]["threads"] == 1
    assert kept["record"]["command"].startswith("python -m benchmarks.reproduce sanflow --data")
    assert set(kept["record"]["versions"]) >= {"semflow", "python", "torch", "timm"}


def test_evaluating_during_training_does_not_change_the_last_epoch(cell: Cell) -> None:
    plain, tracked = measure(cell), measure(replace(cell, evaluations=3))
    assert tracked["metrics"] == plain["metrics"]
    assert [record["epoch"] for record in tracked["history"]] == [1, 2, 3]
    for name, best in tracked["best"].items():
        seen = {record["epoch"]: record[name] for record in tracked["history"]}
        assert best["value"] == max(seen.values()) == seen[best["epoch"]]
    assert tracked["best"]["aupro"]["value"] >= plain["metrics"]["aupro"]
