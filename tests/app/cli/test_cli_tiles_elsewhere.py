"""A model of tiles in a page of results, a watch and a test of drift, and fitted to changed images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import semflow
from helpers.cli_cases import only_line, page_data, save
from helpers.watching import watching
from semflow.app.cli import main
from semflow.app.cli.views import LONGEST_SIDE, save_overlay, save_views
from semflow.data import Tiles
from semflow.detectors import DriftTest

TILES = ["--tile", "32", "--overlap", "8"]
SMALL = ["--recipe", "patchcore", "--backbone", "test_efficientnet", "--weights", "random", "--device", "cpu"]
SET = ["--set", "coreset", "60", "backbone.strides", "8,16", "blur", "0"]
HEIGHT, WIDTH = 50, 71


def part(seed: int, defect: bool = False) -> np.ndarray:
    image = np.random.default_rng(seed).normal(120, 10, (HEIGHT, WIDTH + seed % 3, 3)).astype(np.uint8)
    image[20:40, 30:50] = 255 if defect else image[20:40, 30:50]
    return image


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    for number in range(4):
        save(part(number), root / "train" / "good" / f"{number}.png")
    for number in range(10):
        save(part(40 + number), root / "calibration" / f"{number}.png")
    for number in range(2):
        save(part(60 + number), root / "test" / "good" / f"{number}.png")
        save(part(70 + number, defect=True), root / "test" / "hole" / f"{number}.png")
        mask = np.zeros(part(70 + number).shape[:2], np.uint8)
        mask[20:40, 30:50] = 255
        save(mask, root / "ground_truth" / "hole" / f"{number}_mask.png")
    return root


def fit(parts: Path, output: Path, *more: str) -> int:
    words = ["fit", "--data", str(parts), "--output", str(output), *SMALL, *TILES]
    return main([*words, "--calibration", str(parts / "calibration"), *more, *SET])


@pytest.fixture(scope="module")
def run(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "tiles"
    assert fit(parts, output) == 0
    return output


def test_report_has_pictures_of_the_images_size(run: Path, parts: Path, tmp_path: Path) -> None:
    words = ["evaluate", "--model", str(run), "--data", str(parts), "--report", str(tmp_path / "report")]
    assert main([*words, "--device", "cpu"]) == 0
    rows = page_data(tmp_path / "report")["entries"]
    assert len(rows) == 4
    for row in rows:
        size = Image.open(parts / row["name"]).size
        assert row["views"].keys() == {"original", "overlay", "map", *(["truth"] if row["label"] else [])}
        for url in row["views"].values():
            with Image.open(tmp_path / "report" / url) as shown:
                assert shown.size == size == tuple(row["size"])


def test_watch_scores_as_predict_does(run: Path, parts: Path, tmp_path: Path) -> None:
    pytest.importorskip("watchfiles")
    model = ["predict", "--model", str(run), "--device", "cpu", "--output"]
    words = [*model, str(tmp_path / "watched"), "--watch", str(parts / "test" / "hole"), "--tile", "32"]
    with watching(words, tmp_path / "watched") as command:
        command.expect("0.png", "1.png")
        assert command.end() == 0
    assert main([*model, str(tmp_path / "found"), "--input", str(parts / "test" / "hole")]) == 0
    for line in command.lines():
        maps = [np.load(tmp_path / folder / "maps" / f"{line['image']}.npy") for folder in ("watched", "found")]
        assert maps[0].shape == (line["height"], line["width"]) == part(70 + int(line["image"][0])).shape[:2]
        np.testing.assert_array_equal(*maps)


def test_drift_counts_images_and_not_tiles(run: Path, parts: Path, tmp_path: Path) -> None:
    words = ["predict", "--model", str(run), "--input", str(parts / "test" / "good"), "--device", "cpu"]
    assert main([*words, "--output", str(tmp_path / "out"), "--drift", str(tmp_path / "parts.drift")]) == 0
    found = DriftTest.load(tmp_path / "parts.drift")
    assert found.images == 10
    assert found.count <= 2


def test_benchmark_times_whole_images(run: Path, parts: Path, tmp_path: Path) -> None:
    words = ["export", "--model", str(run), "--images", str(parts / "test"), "--precision", "float16", "--output"]
    assert main([*words, str(tmp_path / "half.pt2")]) == 0
    for model in (run, tmp_path / "half.pt2"):
        words = ["benchmark", str(model), "--images", str(parts / "test"), "--seconds", "0.1", "--batch-size", "3"]
        assert main([*words, "--json", str(tmp_path / "speed.json"), "--device", "cpu"]) == 0
        found = json.loads((tmp_path / "speed.json").read_text())
        assert found["tiles"] == {"size": 32, "overlap": 8}
        assert list(found["batches"]["parts_median_ms"]) == ["decode", "model"]
        assert main(["benchmark", str(model), "--seconds", "0.1", "--device", "cpu"]) == 0


def test_images_are_changed_tile_by_tile(run: Path, parts: Path, tmp_path: Path) -> None:
    assert fit(parts, tmp_path / "run", "--augment", "rotate") == 0
    plain, changed = (semflow.load(path, device="cpu") for path in (run, tmp_path / "run"))
    assert changed.provenance.tiles == Tiles(32, 8)
    assert not torch.equal(plain.bases[0].vectors, changed.bases[0].vectors)


def test_calibration_on_all_images_is_refused(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--data", str(parts), "--output", str(tmp_path / "run"), *SMALL, *TILES, "--hold-out", "cross"]
    assert main([*words, *SET]) == 2
    assert "--hold-out must be a number with --tile, but got 'cross'" in only_line(capsys)
    assert not (tmp_path / "run").exists()


def test_small_peak_of_a_large_map_is_shown(tmp_path: Path) -> None:
    anomaly_map = torch.zeros(1500, 3000)
    anomaly_map[700, 1601] = 1.0
    picture = Image.new("RGB", (LONGEST_SIDE, LONGEST_SIDE // 2))
    save_overlay(tmp_path / "heat.png", picture, anomaly_map, (0.0, 1.0))
    heat = save_views(tmp_path, "a", picture, anomaly_map, (0.0, 1.0))[1]
    for name in ("heat.png", heat):
        with Image.open(tmp_path / name) as shown:
            assert shown.size == picture.size
            red = np.asarray(shown.convert("RGB"))[..., 0].astype(int)
        row, column = np.unravel_index(np.abs(red - np.median(red)).argmax(), red.shape)
        assert (row, column) == (700 * 512 // 1500, 1601 * 1024 // 3000)


def test_too_few_images_to_hold_a_fifth_out(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--data", str(parts / "calibration"), "--output", str(tmp_path / "run"), *SMALL, *TILES, *SET]
    assert main(words) == 0
    expected = "no decisions yet: a fifth of 10 images, held out with --tile, is fewer than the 9 that the highest"
    assert expected in capsys.readouterr().out
