"""PaDiM and PatchCore on our features: against their definitions where anomalib is there, a clear error where not."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from benchmarks.reproduce import __main__ as reproduce
from benchmarks.reproduce import peers
from benchmarks.reproduce.cells import Cell, arguments_of
from benchmarks.shared.datasets import Data

from semflow.data import MVTecAD
from semflow.features import TimmFeatures
from semflow.metrics import ImageAccumulator

needs_anomalib = pytest.mark.skipif(find_spec("anomalib") is None, reason="anomalib is not installed")
SMALL = {"backbone": "resnet18", "weights": "random", "image_size": 64, "strides": (8, 16)}


def cell(mvtec: Path, recipe: str, **arguments: object) -> Cell:
    data = Data("mvtec", str(mvtec), "screw")
    return Cell(recipe, arguments_of(recipe, SMALL, arguments), data, data.fingerprint(), seed=0)


@needs_anomalib
def test_patchcore_with_its_whole_bank_is_the_distance_to_the_nearest_patch(mvtec: Path) -> None:
    result = peers.measure_peer(cell(mvtec, "anomalib.patchcore", coreset=1.0, neighbours=1))
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


def test_arguments_of_peers_leave_out_what_only_flows_have() -> None:
    found = arguments_of("anomalib.padim", {**SMALL, "blocks": 8}, {"channels": 50})
    assert found == {**SMALL, "channels": 50}


@pytest.mark.skipif(find_spec("anomalib") is not None, reason="anomalib is installed")
def test_without_anomalib_the_command_says_so(mvtec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["table3", "--data", str(mvtec), "--peers", "--no-chart"]) == 2
    assert "--peers needs anomalib: python -m pip install" in capsys.readouterr().err
