"""The outputs for a folder of gray images equal those for its RGB copy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.cli_cases import fit_words, snapshot, words
from helpers.gray_cases import in_rgb, save_both, textures
from semflow.app.cli import main

KINDS = ("gray", "rgb")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both kinds of images, and a run of each."""
    folder = tmp_path_factory.mktemp("both")
    save_both(folder)
    for kind, convert in zip(KINDS, (lambda x: x, in_rgb), strict=True):
        root = folder / kind / "test" / "hole"
        masks = folder / kind / "ground_truth" / "hole"
        root.mkdir()
        masks.mkdir(parents=True)
        for number, values in enumerate(textures(3, 7)):
            mask = np.zeros(values.shape, np.uint8)
            mask[10:30, 20:40] = 255
            Image.fromarray(convert(np.where(mask > 0, 255 - values, values))).save(root / f"{number}.png")
            Image.fromarray(mask).save(masks / f"{number}_mask.png")
        assert main(fit_words(folder / kind, folder / f"run-{kind}", "--hold-out", "9")) == 0
    return folder


def pictures(folder: Path) -> dict[str, bytes | None]:
    found = snapshot(folder)
    return {name: content for name, content in found.items() if name.rpartition(".")[2] in ("png", "jpg", "npy")}


def numbers(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text())["images"])


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that was compared with its run on images of both kinds."""
    folder = tmp_path_factory.mktemp("exported")
    start = ["export", "--model", str(trained / "run-gray"), "--output", str(folder / "a.pt2")]
    assert main([*start, "--images", str(of_both_kinds(trained, folder / "images"))]) == 0
    return folder / "a.pt2"


def of_both_kinds(trained: Path, folder: Path) -> Path:
    folder.mkdir()
    for kind in KINDS:
        (folder / f"{kind}.png").write_bytes((trained / kind / "test" / "good" / "00.png").read_bytes())
    return folder


@pytest.mark.parametrize("tool", ["run", "file"])
def test_predict(trained: Path, exported: Path, tool: str, tmp_path: Path) -> None:
    for kind in KINDS:
        model = exported if tool == "file" else trained / f"run-{kind}"
        assert main(words(model, trained / kind / "test", tmp_path / kind)) == 0
    first, second = (pictures(tmp_path / kind) for kind in KINDS)
    assert {name.split("/")[0] for name in first} >= {"originals", "overlays", "heat", "maps", "masks"}
    assert first == second
    assert numbers(tmp_path / "gray" / "scores.json") == numbers(tmp_path / "rgb" / "scores.json")


def test_report_of_evaluate(trained: Path, tmp_path: Path) -> None:
    for kind in KINDS:
        report = ["--report", str(tmp_path / kind)]
        start = ["evaluate", "--model", str(trained / f"run-{kind}"), "--data", str(trained / kind)]
        assert main([*start, "--device", "cpu", *report]) == 0
    first, second = (pictures(tmp_path / kind) for kind in KINDS)
    assert {name.split("/")[0] for name in first} >= {"originals", "overlays", "truths"}
    assert first == second


@pytest.mark.parametrize("tool", ["run", "file"])
def test_benchmark_on_images_of_both_kinds(trained: Path, exported: Path, tool: str, tmp_path: Path) -> None:
    model, images = exported if tool == "file" else trained / "run-gray", of_both_kinds(trained, tmp_path / "images")
    timed = ["--images", str(images), "--seconds", "0.1", "--batch-size", "2", "--device", "cpu"]
    assert main(["benchmark", str(model), *timed]) == 0


def test_watch(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of the loop that `--watch` runs, on the images that are there."""
    pytest.importorskip("watchfiles", reason="needs watchfiles, the extra watch")
    found = {}
    for kind in KINDS:
        monkeypatch.setattr("watchfiles.watch", lambda *args, **options: iter([set(), set(), set()]))
        output = tmp_path / kind
        start = ["predict", "--model", str(trained / f"run-{kind}"), "--output", str(output), "--device", "cpu"]
        assert main([*start, "--watch", str(trained / kind / "test")]) == 0
        lines = [json.loads(line) for line in (output / "scores.jsonl").read_text().splitlines()]
        found[kind] = {line["image"]: (line.get("score"), line.get("error")) for line in lines}
    assert found["gray"] == found["rgb"]
    assert len(found["gray"]) == 15
