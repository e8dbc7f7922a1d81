"""Sizes, padding and regions of interest on the command line, from fit to exported files."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import semflow
from helpers.cli_cases import save
from helpers.export_cases import FORMATS
from helpers.watching import watching
from semflow.app.cli import main
from semflow.app.cli.fit_reports import report_resizing
from semflow.app.export.runtime import SUFFIXES
from semflow.data import open_dataset

HIGH, WIDE = 48, 96
MODEL = ["--recipe", "patchcore", "--backbone", "test_efficientnet", "--weights", "random", "--device", "cpu"]
MODEL += ["--set", "coreset", "0.2", "blur", "1", "smoothing", "1"]


def photo(rng: np.random.Generator, spot: bool = False) -> np.ndarray:
    values = 120 + 60 * np.sin(np.arange(WIDE) / 3)[None, :, None] + rng.normal(0, 8, (HIGH, WIDE, 3))
    if spot:
        values[20:28, 60:72] = 255 * rng.integers(0, 2, (8, 12, 1))
    return values.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for k in range(20):
        save(photo(rng), folder / "data/train/good" / f"{k:02d}.png")
    for k in range(3):
        save(photo(rng), folder / "data/test/good" / f"{k}.png")
        save(photo(rng, spot=True), folder / "data/test/spot" / f"s{k}.png")
        mask = np.zeros((HIGH, WIDE), np.uint8)
        mask[20:28, 60:72] = 255
        save(mask, folder / "data/ground_truth/spot" / f"s{k}_mask.png")
    right = np.zeros((HIGH, WIDE), np.uint8)
    right[:, WIDE // 2 :] = 255
    save(right, folder / "right.png")
    for name in ("train/good", "test/good", "test/spot"):
        for path in (folder / "data" / name).iterdir():
            save(right, folder / "regions" / Path(name).name / path.name)
    return folder


def fit(data: Path, run: Path, *more: str) -> list[str]:
    return ["fit", "--data", str(data / "data"), "--output", str(run), "--hold-out", "9", *more, *MODEL]


def predict(model: Path, data: Path, output: Path, *more: str) -> dict[str, dict[str, str]]:
    words = ["predict", "--model", str(model), "--input", str(data), "--output", str(output), "--device", "cpu", *more]
    assert main(words) == 0
    with (output / "scores.csv").open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def metrics(model: Path, data: Path, file: Path, *more: str) -> dict[str, float]:
    words = ["evaluate", "--model", str(model), "--data", str(data / "data"), "--json", str(file), "--device", "cpu"]
    assert main([*words, *more]) == 0
    return json.loads(file.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("options", "size", "shape"),
    [
        (("--image-size", "64x96"), (64, 96), (64, 96)),
        (("--image-size", "64", "--resize", "pad"), 64, (32, 64)),
        (("--image-size", "96x64", "--resize", "pad"), (96, 64), (32, 64)),
        (("--image-size", "64x96", "--region", "right.png"), (64, 96), (64, 96)),
    ],
)
def test_every_format_reads_images_as_in_training(options, size, shape, format, data, tmp_path, monkeypatch):
    read_alike(options, size, shape, format, data, tmp_path, monkeypatch)


def test_a_model_and_its_export_read_images_as_in_training(data, tmp_path, monkeypatch):
    options = ("--image-size", "96x64", "--resize", "pad", "--region", "right.png")
    read_alike(options, (96, 64), (32, 64), "torch", data, tmp_path, monkeypatch)


def read_alike(options, size, shape, format, data, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(data)
    run, file = tmp_path / "run", tmp_path / f"model{SUFFIXES[format]}"
    assert main(fit(data, run, *options)) == 0
    detector = semflow.load(run, device="cpu")
    assert detector.provenance.image_size == size
    assert detector.provenance.resize == ("pad" if "pad" in options else "stretch")
    assert main(["export", "--model", str(run), "--output", str(file)]) == 0
    test = data / "data/test"
    ours, theirs = predict(run, test, tmp_path / "a"), predict(file, test, tmp_path / "b")
    for name, row in ours.items():
        assert float(row["score"]) == pytest.approx(float(theirs[name]["score"]), rel=1e-4)
        maps = [np.load(tmp_path / folder / row["map"]) for folder in "ab"]
        assert maps[0].shape == shape
        np.testing.assert_allclose(*maps, rtol=1e-3, atol=1e-3)
        outside = maps[0] == -np.inf
        assert np.array_equal(
            outside, np.broadcast_to(np.arange(shape[1]) < shape[1] // 2, shape) & ("--region" in options)
        )
        with Image.open(tmp_path / "a" / row["overlay"]) as overlay, Image.open(test / name) as picture:
            assert overlay.size == picture.size == (WIDE, HIGH)
            if "--region" in options:  # no color outside
                left = [np.asarray(image.convert("RGB"))[:, : WIDE // 2 - 1] for image in (overlay, picture)]
                assert np.array_equal(*left)
        with Image.open(tmp_path / "a" / row["mask"]) as mask:
            assert mask.size == shape[::-1]
            assert not np.asarray(mask)[outside].any()
    a, b = metrics(run, data, tmp_path / "a.json"), metrics(file, data, tmp_path / "b.json")
    assert a["pixel_auroc"] == pytest.approx(b["pixel_auroc"], abs=1e-3)
    assert a["image_auroc"] == 1.0


def test_fit_says_how_images_are_resized(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for size, resize, words in [
        (64, "stretch", "stretching images of 96 x 48 pixels to 64 x 64 (width x height); --resize pad keeps their"),
        (64, "pad", "padding images of 96 x 48 pixels to 64 x 64 (width x height)\n"),
        ((32, 64), "stretch", ""),
        ((48, 64), "pad", "padding images of 96 x 48 pixels to 64 x 48 (width x height)\n"),
    ]:
        report_resizing(open_dataset(data / "data", "train", size, resize=resize))
        shown = capsys.readouterr().out
        assert shown.startswith(words)
        assert bool(shown) == bool(words)


def test_padding_neither_scores_nor_counts(data: Path, tmp_path: Path) -> None:
    """Pixels of the padding are not among those of the metrics: there are as many as in images without any."""
    run = tmp_path / "run"
    assert main(fit(data, run, "--image-size", "64", "--resize", "pad")) == 0
    detector = semflow.load(run, device="cpu")
    tested = open_dataset(data / "data", "test", 64, resize="pad")
    sample = tested[0]
    assert sample.image.shape == (4, 64, 64)
    assert torch.equal(sample.image[3], torch.zeros(64, 64).index_fill(0, torch.arange(16, 48), 1.0))
    noisy = torch.where(sample.image[3] > 0, sample.image, torch.rand(4, 64, 64))
    noisy[3] = sample.image[3]
    first, second = detector.predict(sample.image[None]), detector.predict(noisy[None])
    assert torch.equal(first.score, second.score)
    assert torch.equal(first.anomaly_map, second.anomaly_map)
    assert (first.anomaly_map[0] > -torch.inf).sum() == 32 * 64


def test_a_folder_of_regions_is_named_again(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, regions = tmp_path / "run", ("--region", str(data / "regions"))
    assert main(fit(data, run, "--image-size", "48x96", "--region", str(data / "regions/good"))) == 0
    one = tmp_path / "one"
    assert main(fit(data, one, "--image-size", "48x96", "--region", str(data / "right.png"))) == 0
    capsys.readouterr()
    for command, named in (("predict", "--input"), ("evaluate", "--data"), ("calibrate", "--data")):
        place = ["--output", str(tmp_path / "none")] if command == "predict" else []
        assert main([command, "--model", str(run), named, str(data / "data/test/good"), *place]) == 2
        assert "--region must be a mask or a folder of masks for a model" in capsys.readouterr().err
        assert main([command, "--model", str(one), named, str(data / "data/test/good"), *place, *regions]) == 2
        assert "--region must be left out" in capsys.readouterr().err
    ours = predict(run, data / "data/test", tmp_path / "a", *regions)
    theirs = predict(one, data / "data/test", tmp_path / "b")
    assert {name: row["score"] for name, row in ours.items()} == {name: row["score"] for name, row in theirs.items()}
    assert metrics(run, data, tmp_path / "a.json", *regions) | {"model": ""} == metrics(
        one, data, tmp_path / "b.json"
    ) | {"model": ""}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--image-size", "64y96"), "--image-size must be a number of pixels or HEIGHTxWIDTH, but got 64y96"),
        (("--image-size", "0x64"), "--image-size must be at least 1, but got 0x64"),
        (("--image-size", "64x99999"), "image_size must be between 1 and 16384 pixels, but got (64, 99999)"),
        (("--region", "no.png"), "no.png must be a mask or a folder of masks, but got no such path"),
        (
            ("--region", "square.png"),
            "square.png must have the proportions of its images, 96 x 48 pixels, but got 9 x 9",
        ),
        (("--region", "black.png"), "black.png must mark the region of interest, but got only black"),
        (("--region", "few"), "must have a region few/01.png, but got none; add the mask"),
        (("--region", "data/test"), "must have a region data/test/00.png, but got none"),
    ],
)
def test_mistakes_are_named(options, words, data, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(data)
    save(np.full((9, 9), 255, np.uint8), data / "square.png")
    save(np.zeros((HIGH, WIDE), np.uint8), data / "black.png")
    save(np.full((HIGH, WIDE), 255, np.uint8), data / "few/00.png")
    assert main(fit(data, tmp_path / "run", *options)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_configuration_keeps_size_and_region(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--image-size", "48x96", "--resize", "pad", "--region", str(data / "right.png")]
    assert main([*fit(data, tmp_path / "run", *options), "--print-config"]) == 0
    (tmp_path / "fit.toml").write_text(capsys.readouterr().out)
    assert (
        main(["fit", "--config", str(tmp_path / "fit.toml"), "--output", str(tmp_path / "run"), "--device", "cpu"]) == 0
    )
    detector = semflow.load(tmp_path / "run", device="cpu")
    assert (detector.provenance.image_size, detector.provenance.resize) == ((48, 96), "pad")
    assert detector.region is not None
    assert not detector.region[:, :48].any()


def test_pages_and_images_that_arrive_are_without_padding(data: Path, tmp_path: Path) -> None:
    run, report, output = tmp_path / "run", tmp_path / "report", tmp_path / "watched"
    regions = ("--region", str(data / "regions"))
    options = ("--image-size", "64", "--resize", "pad", "--region", str(data / "regions/good"))
    assert main(fit(data, run, *options)) == 0
    found = metrics(run, data, tmp_path / "m.json", "--report", str(report), *regions)
    assert found["pixel_auroc"] is not None
    for folder, size in {"originals": (WIDE, HIGH), "overlays": (WIDE, HIGH), "heat": (64, 32)}.items():
        files = sorted((report / folder).iterdir())
        assert len(files) == 6
        assert {Image.open(file).size for file in files} == {size}
    pytest.importorskip("watchfiles")
    test = data / "data/test"
    scores = predict(run, test, tmp_path / "a", *regions)
    words = ["predict", "--model", str(run), "--watch", str(test), "--output", str(output), "--device", "cpu", *regions]
    with watching(words, output) as watched:
        watched.expect(*scores)
        assert watched.end() == 0
        lines = {line["image"]: line for line in watched.lines()}
    for name, row in scores.items():
        assert lines[name]["score"] == pytest.approx(float(row["score"]), rel=1e-4)
        assert np.load(output / lines[name]["map"]).shape == (32, 64)
