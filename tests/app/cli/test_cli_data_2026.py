"""Evaluation of MVTec LOCO AD and AD 2 on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import semflow
from helpers.cli_cases import SIZE, picture, save
from semflow.app.cli import main
from semflow.app.cli.inputs import open_normal
from semflow.data import MVTecLOCO
from semflow.errors import DataError
from semflow.metrics import spro
from semflow.training import results


def test_spro_of_loco_equals_the_function(shared_run: Path, tmp_path: Path) -> None:
    rng, root = np.random.default_rng(0), tmp_path / "box"
    for k in range(2):
        save(picture(rng), root / "test" / "good" / f"{k:03}.png")
        for kind in ("logical_anomalies", "structural_anomalies"):
            defective = picture(rng)
            for number, (level, box) in enumerate(((255, np.s_[5:20, 5:40]), (254, np.s_[15:50, 30:60]))):
                mask = np.zeros(defective.shape[:2], np.uint8)
                mask[box] = level
                defective[mask > 0] = 255 - defective[mask > 0]
                save(mask, root / "ground_truth" / kind / f"{k:03}" / f"{number:03}.png")
            save(defective, root / "test" / kind / f"{k:03}.png")
    kinds = ((255, 40, False), (254, 0.25, True))
    names = ("pixel_value", "saturation_threshold", "relative_saturation")
    (root / "defects_config.json").write_text(json.dumps([dict(zip(names, kind, strict=True)) for kind in kinds]))
    words = ["evaluate", "--model", str(shared_run), "--data", str(root), "--json", str(tmp_path / "a.json")]
    assert main([*words, "--metrics", "spro", "spro@0.3"]) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    test = MVTecLOCO(root, "test", SIZE)
    maps = torch.stack([result.anomaly_map for result in results(semflow.load(shared_run), test)])
    defects = [test.defects(path) for path in test.paths]
    assert [len(its) for its in defects] == [0, 0, 2, 2, 2, 2]
    for name, limit in (("spro", 0.05), ("spro@0.3", 0.3)):
        assert found[name] == pytest.approx(spro(maps, defects, limit), abs=1e-9)
    assert found["spro@0.3"] > found["aupro"]  # a quarter of a defect is enough


def test_defects_of_mvtec_ad_2_are_not_taken_for_normal(tmp_path: Path) -> None:
    rng, root = np.random.default_rng(0), tmp_path / "can" / "test_public"
    for name in ("good", "bad"):
        save(picture(rng), root / name / "000_regular.png")
    assert len(open_normal(root / "good", SIZE, "--data")) == 1
    with pytest.raises(DataError, match="must be normal, but got a folder of defects"):
        open_normal(root / "bad", SIZE, "--data")
