"""Commands on images that are cut into tiles: `fit --tile`, and all commands that use its model."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import semflow
from helpers.cli_cases import only_line, save, snapshot
from semflow.app import export
from semflow.app.cli import main
from semflow.app.scale import BlockStore, Workers, pipeline, read_listing
from semflow.data import Tiles, open_dataset
from semflow.errors import ConfigError

BACKBONE = ["--backbone", "test_efficientnet", "--weights", "random", "--device", "cpu"]
SMALL = ["--recipe", "patchcore", *BACKBONE, "--set", "coreset", "60", "backbone.strides", "8,16", "blur", "0"]
HEIGHT, WIDTH = 70, 93


def part(seed: int, defect: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of noise, and the mask of a flat square in it."""
    rng = np.random.default_rng(seed)
    height = HEIGHT + seed % 3  # images of several sizes
    image = rng.normal(120, 10, (height, WIDTH, 3)).astype(np.uint8)
    mask = np.zeros((height, WIDTH), np.uint8)
    if defect:
        mask[40:60, 50:70] = 255
        image[mask > 0] = 255
    return image, mask


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    for number in range(12):
        save(part(number)[0], root / "train" / "good" / f"{number:02d}.png")
    for number in range(3):
        save(part(50 + number)[0], root / "test" / "good" / f"{number}.png")
        image, mask = part(60 + number, defect=True)
        save(image, root / "test" / "hole" / f"{number}.png")
        save(mask, root / "ground_truth" / "hole" / f"{number}_mask.png")
    for number in range(9):
        save(part(80 + number)[0], root / "calibration" / f"{number}.png")
    return root


def fit(parts: Path, output: Path, *more: str) -> int:
    return main(["fit", "--data", str(parts), "--output", str(output), *more, *SMALL])


@pytest.fixture(scope="module")
def run(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "tiles"
    assert fit(parts, output, "--tile", "32", "--overlap", "8", "--calibration", str(parts / "calibration")) == 0
    return output


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    path = run.parent / "tiles.pt2"
    words = ["export", "--model", str(run), "--output", str(path), "--tile", "32"]
    assert main([*words, "--images", str(run.parent)]) != 0  # without images
    assert main(words) == 0
    return path


def predict(model: Path, parts: Path, output: Path, *more: str) -> dict[str, dict[str, str]]:
    words = ["predict", "--model", str(model), "--input", str(parts / "test"), "--output", str(output)]
    assert main([*words, "--device", "cpu", *more]) == 0
    with (output / "scores.csv").open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def test_predict_writes_maps_of_the_images_size(run: Path, parts: Path, tmp_path: Path) -> None:
    rows = predict(run, parts, tmp_path / "out")
    assert semflow.load(run).provenance.tiles == Tiles(32, 8)
    for name, row in rows.items():
        size = (int(row["height"]), int(row["width"]))
        assert size == Image.open(parts / "test" / name).size[::-1]
        found = np.load(tmp_path / "out" / row["map"])
        assert found.shape == size
        assert np.asarray(Image.open(tmp_path / "out" / row["mask"])).shape == size
        if name.startswith("hole"):
            top, left = np.unravel_index(found.argmax(), size)
            assert 36 <= top < 64
            assert 46 <= left < 74


def test_predict_gives_the_same_results_whatever_the_batch(run: Path, parts: Path, tmp_path: Path) -> None:
    for number in (1, 3, 8):
        predict(run, parts, tmp_path / f"{number}", "--batch-size", f"{number}")
    predict(run, parts, tmp_path / "tile", "--tile", "32", "--overlap", "8", "--workers", "2")
    first = snapshot(tmp_path / "1")
    for other in ("3", "8", "tile"):
        assert snapshot(tmp_path / other) == first


def test_exported_file_predicts_the_same(run: Path, exported: Path, parts: Path, tmp_path: Path) -> None:
    ours, theirs = predict(run, parts, tmp_path / "run"), predict(exported, parts, tmp_path / "file", "--tile", "32")
    for name, row in ours.items():
        assert float(theirs[name]["score"]) == pytest.approx(float(row["score"]), rel=1e-5)
        for column in ("p_value", "is_anomalous"):
            assert theirs[name][column] == row[column]
        maps = (np.load(tmp_path / folder / row["map"]) for folder in ("run", "file"))
        np.testing.assert_allclose(*maps, rtol=1e-4, atol=1e-5)


def test_exported_file_tells_its_tiles(exported: Path) -> None:
    detector = export.load(exported)
    assert detector.provenance.tiles == Tiles(32, 8)
    image = torch.randint(0, 256, (1, 3, 50, 77), dtype=torch.uint8)
    found, single = detector.predict(image), export.run_image(detector.runner, image[0].numpy())
    for name in ("score", "anomaly_map", "p_value", "is_anomalous", "mask"):
        np.testing.assert_array_equal(getattr(found, name)[0].numpy(), single[name])
    np.testing.assert_array_equal(
        single["mask"], single["anomaly_map"] > detector.metadata.calibration["map_threshold"]
    )


@pytest.mark.skipif(find_spec("onnxruntime") is None or find_spec("onnx") is None, reason="needs ONNX Runtime")
def test_image_is_scored_without_torch(run: Path, tmp_path: Path) -> None:
    path = export.save(semflow.load(run, device="cpu"), tmp_path / "tiles.onnx", check=False).path
    code = (
        "import sys\nfor name in ('torch', 'timm', 'PIL', 'scipy'):\n    sys.modules[name] = None\n"
        "import numpy as np\nfrom semflow.app.export import open_runner, run_image\n"
        f"found = run_image(open_runner({str(path)!r}), np.zeros((3, 40, 90), np.uint8))\n"
        "print(found['score'].shape, found['anomaly_map'].shape, found['mask'].shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "() (40, 90) (40, 90)", done.stderr


def test_run_image_needs_tiles_and_an_image(exported: Path) -> None:
    runner = export.open_runner(exported)
    with pytest.raises(semflow.errors.ShapeError, match="image must be"):
        export.run_image(runner, np.zeros((1, 3, 40, 40), np.uint8))
    runner.metadata.tiles.clear()
    with pytest.raises(ConfigError, match="fitted with tiles"):
        export.run_image(runner, np.zeros((3, 40, 40), np.uint8))


def test_evaluate_and_calibrate(run: Path, exported: Path, parts: Path, tmp_path: Path) -> None:
    found = []
    for number, model in enumerate((run, exported)):
        words = ["evaluate", "--model", str(model), "--data", str(parts), "--device", "cpu", "--overlap", "8"]
        assert main([*words, "--json", str(tmp_path / f"{number}.json")]) == 0
        found.append(json.loads((tmp_path / f"{number}.json").read_text()))
    assert found[0]["image_auroc"] == found[1]["image_auroc"] == 1
    assert found[0]["pixel_auroc"] > 0.9
    other = tmp_path / "run"
    assert fit(parts, other, "--tile", "32", "--overlap", "8") == 0
    words = ["calibrate", "--model", str(other), "--data", str(parts / "calibration"), "--device", "cpu"]
    assert main([*words, "--tile", "32"]) == 0
    again, first = semflow.load(other, device="cpu"), semflow.load(run, device="cpu")
    assert torch.equal(again.calibration.scores, first.calibration.scores)
    assert again.calibration.count == 9


def test_remember(run: Path, parts: Path, tmp_path: Path) -> None:
    words = ["remember", "--model", str(run), "--data", str(parts), "--output", str(tmp_path / "out"), "--size", "50"]
    assert main([*words, "--device", "cpu", "--form", "distance", "--no-log-det"]) == 0
    assert semflow.load(tmp_path / "out", device="cpu").provenance.tiles == Tiles(32, 8)


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("predict", ["--input", "{parts}/test", "--output", "{out}/a"]),
        ("evaluate", ["--data", "{parts}"]),
        ("calibrate", ["--data", "{parts}/calibration"]),
        ("export", ["--output", "{out}/a.pt2"]),
    ],
)
def test_other_tiles_than_those_of_fit_are_refused(
    command: str, more: list[str], run: Path, shared_run: Path, parts: Path, tmp_path: Path, capsys: Any
) -> None:
    words = [word.format(parts=parts, out=tmp_path) for word in more]
    for model, option, value, expected in (
        (run, "--tile", "64", "32, as in fit"),
        (run, "--overlap", "0", "8, as in fit"),
        (shared_run, "--tile", "64", "left out for a model that was fitted without tiles"),
    ):
        capsys.readouterr()
        assert main([command, "--model", str(model), *words, option, value]) == 2
        assert f"{option} must be {expected}, but got {value}" in only_line(capsys)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--overlap", "8"], "--overlap must come with --tile, but got 8 without"),
        (["--tile", "32", "--image-size", "64"], "--image-size must be left out with --tile"),
        (["--tile", "32", "--resize", "pad"], "--resize must be left out with --tile"),
        (["--tile", "32", "--region", "{mask}"], "--region must be a folder of masks with --tile"),
        (["--tile", "32", "--overlap", "17"], "overlap of tiles must be between 0 and half of their size"),
        (["--tile", "0"], "--tile must be at least 1, but got 0"),
        (["--tile", "32", "--recipe", "padim", "--set", "coreset", "9"], "settings must have known names"),
    ],
)
def test_mistakes_of_fit(more: list[str], message: str, parts: Path, tmp_path: Path, capsys: Any) -> None:
    mask = parts / "ground_truth" / "hole" / "0_mask.png"
    words = ["fit", "--data", str(parts), "--output", str(tmp_path / "run"), "--recipe", "patchcore", *BACKBONE]
    assert main([*words, *(word.format(mask=mask) for word in more)]) == 2
    assert message in only_line(capsys)
    assert not (tmp_path / "run").exists()


def test_recipe_that_needs_whole_images(parts: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["fit", "--data", str(parts), "--output", str(tmp_path / "run"), "--recipe", "padim", *BACKBONE]
    assert main([*words, "--tile", "32"]) == 2
    assert "tiles must be None for a PositionGaussian" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_printed_configuration_has_the_tiles(run: Path, parts: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["fit", "--data", str(parts), "--calibration", str(parts / "calibration"), "--device", "cpu"]
    assert main([*words, "--tile", "32", "--overlap", "8", "--print-config", *SMALL]) == 0
    (tmp_path / "fit.toml").write_text(capsys.readouterr().out)
    words = ["fit", "--config", str(tmp_path / "fit.toml"), "--output", str(tmp_path / "run"), "--device", "cpu"]
    assert main(words) == 0
    ours, theirs = (semflow.load(path, device="cpu").state_dict() for path in (run, tmp_path / "run"))
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())


def test_masks_of_regions(parts: Path, tmp_path: Path) -> None:
    for folder in ("train/good", "test/good", "test/hole"):
        for image in (parts / folder).iterdir():
            inside = np.zeros(Image.open(image).size[::-1], np.uint8)
            inside[:, :48] = 255  # without the holes
            save(inside, tmp_path / folder / image.name)
    assert fit(parts, tmp_path / "run", "--tile", "32", "--region", str(tmp_path / "train" / "good")) == 0
    rows = predict(tmp_path / "run", parts, tmp_path / "out", "--region", str(tmp_path / "test"))
    found = np.load(tmp_path / "out" / rows["hole/0.png"]["map"])
    assert np.isfinite(found[:, :48]).all()
    assert np.isneginf(found[:, 48:]).all()


def test_unreadable_image_is_skipped(run: Path, parts: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    (tmp_path / "in" / "good.png").write_bytes((parts / "test" / "good" / "0.png").read_bytes())
    words = ["predict", "--model", str(run), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main([*words, "--device", "cpu"]) == 2
    assert main([*words, "--device", "cpu", "--on-error", "skip"]) == 0


@pytest.mark.parametrize("skip", [True, False])
def test_worker_of_score_decodes_images_itself(
    skip: bool, run: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes((parts / "test" / "hole" / f"{number}.png").read_bytes())
    (folder / "bad.png").write_bytes(b"no image")
    store = BlockStore(tmp_path / "out", read_listing(folder), 4, {})
    store.open()
    (block,) = store
    committed: list[dict[str, list[Any]]] = []

    class Done:
        def _asdict(self) -> dict[str, Any]:
            return {}

    commit: Callable[..., Done] = lambda path, block, rows, paged: committed.append(rows) or Done()  # noqa: E731
    monkeypatch.setattr(pipeline, "commit_block", commit)
    load = lambda: semflow.load(run, device="cpu")  # noqa: E731
    worker = pipeline._Worker(store.folder, store.manifest, load, Workers(threads=1), skip, folder)
    row = worker({"block": block.number, "file": block.file, "names": [name.encode() for name in block.names]})
    if not skip:
        assert row["kind"] == "DataError"
        return
    assert row == {"kind": "", "message": "{}"}
    detector, images = load(), open_dataset(parts / "test" / "hole", "predict", image_size=None)
    expected = [detector.predict(images[k].image[None]) for k in range(3)]
    (rows,) = committed
    assert rows["score"] == [*(one.score.item() for one in expected), None]
    assert rows["is_anomalous"] == [*(one.is_anomalous.item() for one in expected), None]
    assert [bool(text) for text in rows["error"]] == [False, False, False, True]
