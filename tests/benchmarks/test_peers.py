"""PaDiM and PatchCore on the features of the flows."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.reproduce import __main__ as reproduce
from benchmarks.reproduce import peers
from benchmarks.reproduce.cells import Cell, measure
from benchmarks.reproduce.options import parse
from benchmarks.reproduce.planning import choose_rows, plan
from benchmarks.reproduce.tables import table
from benchmarks.shared.datasets import Data
from benchmarks.shared.store import CellStore, Key

from semflow.data import MVTecAD
from semflow.features import TimmFeatures
from semflow.metrics import ImageAccumulator

needs_anomalib = pytest.mark.skipif(find_spec("anomalib") is None, reason="anomalib is not installed")
SMALL = {"backbone.name": "resnet18", "backbone.weights": "random", "backbone.strides": (8, 16), "image_size": 64}


def cell(mvtec: Path, recipe: str, **arguments: object) -> Cell:
    return Cell(Key("peer", "screw", 0), recipe, SMALL | arguments, Data("mvtec", str(mvtec), "screw"))


@needs_anomalib
def test_patchcore_without_coreset_is_the_distance_to_the_nearest_patch(mvtec: Path) -> None:
    result = peers.measure_peer(cell(mvtec, "anomalib.patchcore", coreset=1.0, neighbors=1))
    features = TimmFeatures("resnet18", "random", (8, 16), image_size=64, seed=0)

    def patches(split: str) -> tuple[torch.Tensor, list[int]]:
        data = MVTecAD(mvtec, split, 64, category="screw")
        fine, coarse = features(torch.stack([data[k].image for k in range(len(data))]))
        fine, coarse = (torch.nn.functional.avg_pool2d(x, 3, 1, 1) for x in (fine, coarse))
        joined = torch.cat([fine, torch.nn.functional.interpolate(coarse, size=fine.shape[2:], mode="bilinear")], 1)
        return joined.flatten(2).transpose(1, 2), list(data.labels)

    with torch.no_grad():
        bank, _ = patches("train")
        found, labels = patches("test")
    nearest = torch.cdist(found, bank.flatten(0, 1)[None].expand(len(found), -1, -1)).min(2).values
    truth = ImageAccumulator()
    truth.update(nearest.max(1).values, torch.tensor(labels))
    assert result["metrics"]["image_auroc"] == pytest.approx(truth.compute().auroc, abs=1e-6)
    assert result["metrics"]["aupro"] > 0.5
    assert (result["train_images"], result["test_images"], result["anomalib"]) == (6, 6, peers.anomalib_version())


@needs_anomalib
def test_padim_finds_the_holes(mvtec: Path) -> None:
    result = peers.measure_peer(cell(mvtec, "anomalib.padim", channels=20))
    assert result["metrics"]["image_auroc"] > 0.9


@needs_anomalib
def test_peers_ignore_settings_that_only_flows_have(mvtec: Path, tmp_path: Path) -> None:
    words = ["sanflow", "--data", str(mvtec), "--peers", "--set", "couplings.blocks=8", "channels=50"]
    options, sanflow = parse([*words, "--output", str(tmp_path)]), table("sanflow")
    planned = plan(sanflow, choose_rows(sanflow, options), options, CellStore(options.cells))
    arguments = {c.row.name: c.cell.arguments for c in planned if c.cell}
    assert arguments["SANFlow"]["couplings.blocks"] == 8
    for name in ("PaDiM", "PaDiM, anomalib"):
        assert arguments[name]["channels"] == 50
        assert "couplings.blocks" not in arguments[name]
    for name in ("PatchCore (1 %)", "PatchCore (1 %), anomalib"):
        assert arguments[name]["coreset"] == 0.01
        assert "channels" not in arguments[name]


@needs_anomalib
@pytest.mark.parametrize("share", [0.02, 0.3])
def test_coreset_of_peers_is_that_of_anomalib(share: float) -> None:
    from anomalib.models.components import KCenterGreedy

    embedding = torch.rand(300, 20, generator=torch.Generator().manual_seed(0))
    found = []
    for select in (peers.coreset_of, lambda x, share: KCenterGreedy(x, share).sample_coreset()):
        torch.manual_seed(4)
        np.random.seed(4)  # noqa: NPY002
        found.append(select(embedding, share))
    assert torch.equal(*found)


@needs_anomalib
@pytest.mark.parametrize("method", ["padim", "patchcore"])
def test_recipes_have_the_metrics_of_peers(mvtec: Path, method: str) -> None:
    own = {"channels": 20, "shrinkage": 0.01001} if method == "padim" else {"coreset": 1.0}
    theirs = {name: value for name, value in own.items() if name != "shrinkage"}
    expected = peers.measure_peer(cell(mvtec, f"anomalib.{method}", **theirs))
    found = measure(cell(mvtec, method, **own))
    assert found["metrics"] == pytest.approx(expected["metrics"], abs=1e-5)
    assert (found["epoch"], found["epochs"], found["steps"], found["trained_parameters"]) == ("one pass", None, None, 0)


def test_epochs_and_settings_of_flows_do_not_change_methods_without_training(mvtec: Path, tmp_path: Path) -> None:
    words = ["table3", "--data", str(mvtec), "--epochs", "3", "--set", "couplings.blocks=2", "--output", str(tmp_path)]
    options, table3 = parse(words), table("table3")
    planned = plan(table3, choose_rows(table3, options), options, CellStore(options.cells))
    fits = {c.row.name: (c.cell.fit, c.cell.settings["set"]) for c in planned if c.cell}
    assert fits["SANFlow"] == ({"epochs": 3}, {"couplings.blocks": 2})
    assert fits["PaDiM"] == fits["PatchCore-10"] == ({}, {})


@pytest.mark.skipif(find_spec("anomalib") is not None, reason="anomalib is installed")
def test_peers_without_anomalib_are_a_clear_error(mvtec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["table3", "--data", str(mvtec), "--peers", "--no-chart"]) == 2
    assert "anomalib must be installed for --peers, but got none; python -m pip install" in capsys.readouterr().err
