"""Commands of semflow: fit, evaluate and predict do and write what the library computes."""

import csv
import json
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

import semflow
from helpers.cli_cases import SIZE, fit_words, page_data, picture, save, snapshot
from semflow.app.cli import main
from semflow.app.cli.views import save_overlay, shown_size
from semflow.app.report import heat_colors, load_map
from semflow.app.report.colors import normalize
from semflow.data import ImageDataset, open_dataset


def test_fit_writes_a_run_that_loads(shared_run: Path) -> None:
    names = {path.name for path in shared_run.iterdir()}
    assert {"config.json", "model.safetensors", "log.jsonl"} <= names
    assert not [name for name in names if name.startswith(".")]
    detector = semflow.load(shared_run)
    assert detector.provenance.image_size == SIZE
    assert len(detector.flows) == 2


def test_fit_on_an_existing_run_suggests_resume_and_changes_nothing(
    shared_run: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(shared_run)
    assert main(fit_words(shared_data, shared_run)) == 2
    assert "resume" in capsys.readouterr().err
    assert snapshot(shared_run) == before


def test_evaluate_prints_and_writes_the_library_metrics(
    shared_run: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "deep" / "metrics.json"
    assert main(["evaluate", "--model", str(shared_run), "--data", str(shared_data), "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    expected = semflow.evaluate(semflow.load(shared_run), open_dataset(shared_data, "test", SIZE))
    for name in ("image_auroc", "pixel_auroc", "aupro", "image_f1_max"):
        assert found[name] == pytest.approx(expected[name], abs=1e-9)
    assert (found["images"], found["anomalous_images"]) == (8, 4)
    assert found["versions"]["semflow"] == semflow.__version__
    assert found["versions"]["torch"] == torch.__version__
    shown = capsys.readouterr().out
    assert f"{100 * found['image_auroc']:.2f}" in shown
    assert f"{100 * found['aupro']:.2f}" in shown


@pytest.mark.filterwarnings("ignore:AUPIMO needs at least")
def test_evaluate_computes_the_metrics_that_are_named(
    shared_run: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, names = tmp_path / "metrics.json", ["aupimo", "aupro@0.05", "image_average_precision", "aupro"]
    words = ["evaluate", "--model", str(shared_run), "--data", str(shared_data), "--metrics"]
    assert main([*words, *names, "--json", str(file)]) == 0
    found, (shown, warned) = json.loads(file.read_text()), capsys.readouterr()
    assert "warning: AUPIMO needs at least 100000 normal pixels for rates from 1e-05 on, but got 16384" in warned
    expected = semflow.evaluate(semflow.load(shared_run), open_dataset(shared_data, "test", SIZE), metrics=names)
    for name in names:
        assert found[name] == pytest.approx(expected[name], abs=1e-9)
        assert (f"{100 * found[name]:.2f}" in shown) == (name in shown or name == "aupro")
    assert sorted(found["aupimo_of_images"]) == [f"test/hole/{k}.png" for k in range(4)]
    assert sum(found["aupimo_of_images"].values()) / 4 == pytest.approx(found["aupimo"])
    for wrong, message in (
        ("aupimoo", "metrics must be among image_average_precision, part_auroc, pixel_average_precision,"),
        ("aupro@5", "fpr_limit must be in (0, 1], but got 5.0"),
        ("seg_f1", "metrics must have seg_f1 only for a calibrated detector, but got one without calibration"),
        ("spro", "metrics must have spro only for a data set with saturation thresholds, such as MVTecLOCO"),
        ("part_auroc", "metrics must have part_auroc only for a data set with several views of a part"),
    ):
        assert main([*words, wrong]) == 2
        assert message in capsys.readouterr().err


def test_evaluate_without_masks_writes_null_pixel_metrics(shared_run: Path, data: Path, tmp_path: Path) -> None:
    (data / "ground_truth").rename(tmp_path / "elsewhere")
    file = tmp_path / "metrics.json"
    words = ["evaluate", "--model", str(shared_run), "--data", str(data), "--metrics", "aupimo"]
    assert main([*words, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["aupimo"] is found["pixel_auroc"] is None
    assert found["aupro"] is None
    assert 0 <= found["image_auroc"] <= 1


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Create images whose names differ in the suffix only, or contain markup, and an image that is not square."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "photos"
    save(picture(rng), folder / "a.png")
    save(picture(rng), folder / "a.jpg")
    save(picture(rng), folder / "sub" / "a.png")
    save(np.tile(picture(rng), (1, 3, 1)), folder / "wide #1 <b>&.png")
    return folder


def test_predict_writes_scores_overlays_maps_and_a_page(shared_run: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "results"
    words = ["predict", "--model", str(shared_run), "--input", str(photos), "--output", str(output)]
    assert main([*words, "--batch-size", "3"]) == 0
    with (output / "scores.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    names = ["a.jpg", "a.png", "sub/a.png", "wide #1 <b>&.png"]
    assert [row["image"] for row in table] == names
    content = json.loads((output / "scores.json").read_text())
    assert [record["score"] for record in content["images"]] == [float(row["score"]) for row in table]

    detector = semflow.load(shared_run)
    dataset = open_dataset(photos, "predict", SIZE)
    page = (output / "index.html").read_text()
    rows = {row["name"]: row for row in page_data(output)["entries"]}
    assert list(rows) == names
    for record, sample in zip(content["images"], dataset, strict=True):
        prediction = detector.predict(sample.image[None])
        assert record["score"] == pytest.approx(prediction.score.item(), abs=1e-5)
        np.testing.assert_allclose(load_map(output / record["map"]), prediction.anomaly_map[0].numpy(), atol=1e-5)
        with Image.open(output / record["overlay"]) as overlay, Image.open(sample.path) as original:
            assert overlay.size == original.size == (record["width"], record["height"])
        views = {kind: output / unquote(url) for kind, url in rows[record["image"]]["views"].items()}
        assert views.keys() == {"original", "overlay", "map"}
        assert rows[record["image"]]["size"] == [record["width"], record["height"]]
        assert rows[record["image"]]["label"] == -1
        levels = normalize(prediction.anomaly_map[0].numpy(), detector.map_range)
        with Image.open(views["original"]) as shown, Image.open(views["map"]) as heat:
            assert shown.size == (record["width"], record["height"])
            np.testing.assert_allclose(np.asarray(heat.convert("RGB"), int), heat_colors(levels), atol=4)
    assert len({record["map"] for record in content["images"]}) == len(names)
    assert "<b>" not in page
    assert rows["wide #1 <b>&.png"]["views"]["overlay"] == "overlays/wide%20%231%20%3Cb%3E%26.png.png"
    files = {path.relative_to(output).parts[0] for path in output.rglob("*") if path.is_file()}
    assert files == {"scores.csv", "scores.json", "index.html", "overlays", "maps", "originals", "heat"}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("size", [(2500, 500), (40, 30), (7, 3000)])
def test_overlay_keeps_the_proportions_and_places_the_heat(size: tuple[int, int], tmp_path: Path) -> None:
    width, height = shown_size(*size)
    assert max(width, height) == min(max(size), 1024)
    assert abs(width / height - size[0] / size[1]) <= max(1.0 / height * width / height, 1.0 / height)
    anomaly_map = torch.zeros(64, 64)
    anomaly_map[:16, 32:] = 1.0  # the upper quarter of the right half
    save_overlay(tmp_path / "heat.png", Image.new("RGB", (width, height)), anomaly_map, (0.0, 1.0))
    with Image.open(tmp_path / "heat.png") as picture:
        pixels = np.asarray(picture.convert("L").resize((8, 8), Image.Resampling.BOX))
    hot = np.zeros((8, 8), dtype=bool)
    hot[:2, 4:] = True
    assert pixels[hot].min() > pixels[~hot].max() + 50


def test_predict_handles_unusual_names_and_image_modes(shared_run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    folder, output = tmp_path / "photos", tmp_path / "results"
    odd = [
        "=1+1,2.png",
        "a b.png",
        'quote".png',
        "it's.png",
        "line\nbreak.png",
        "\u00fc\u6f22\U0001f600.png",
        "50%25 #?.png",
    ]
    for name in odd:
        save(picture(rng), folder / name)
    save(picture(rng)[:, :, 0], folder / "x" / "part.png")
    save((picture(rng)[:, :, 0].astype(np.uint16) << 8), folder / "y" / "part.png")
    shutil.copy(folder / "a b.png", folder / "LOUD.PNG")
    assert main(["predict", "--model", str(shared_run), "--input", str(folder), "--output", str(output)]) == 0
    with (output / "scores.csv").open(newline="", encoding="utf-8") as file:
        table = {row["image"]: row for row in csv.DictReader(file)}
    assert set(table) == {*odd, "x/part.png", "y/part.png", "LOUD.PNG"}
    assert all((output / row["overlay"]).is_file() and (output / row["map"]).is_file() for row in table.values())
    assert table["LOUD.PNG"]["score"] == pytest.approx(table["a b.png"]["score"])
    rows = page_data(output)["entries"]
    assert {row["name"]: unquote(row["views"]["overlay"]) for row in rows} == {
        name: row["overlay"] for name, row in table.items()
    }
    assert all((output / unquote(url)).is_file() for row in rows for url in row["views"].values())


def test_predict_writes_a_16_bit_map_for_one_file(shared_run: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "results"
    output.mkdir()  # an empty folder is accepted
    words = ["predict", "--model", str(shared_run), "--input", str(photos / "a.png"), "--output", str(output)]
    assert main([*words, "--map-format", "png16"]) == 0
    record = json.loads((output / "scores.json").read_text())["images"][0]
    assert record["image"] == "a.png"
    prediction = semflow.load(shared_run).predict(open_dataset(photos / "a.png", "predict", SIZE)[0].image[None])
    expected = prediction.anomaly_map[0].numpy()
    np.testing.assert_allclose(load_map(output / record["map"]), expected, atol=np.ptp(expected) / 65535 + 1e-5)


def test_predict_decodes_each_image_once(
    shared_run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, decoded = ImageDataset.read_image, []

    def count(self: ImageDataset, index: int) -> Image.Image:
        decoded.append(index)
        return read(self, index)

    monkeypatch.setattr(ImageDataset, "read_image", count)
    words = ["predict", "--model", str(shared_run), "--input", str(photos), "--output", str(tmp_path / "results")]
    assert main(words) == 0
    assert sorted(decoded) == [0, 1, 2, 3]


def test_predict_loads_images_in_other_processes_with_the_same_scores(
    shared_run: Path, photos: Path, tmp_path: Path
) -> None:
    scores = []
    for workers in ("0", "2"):
        output = tmp_path / workers
        words = ["predict", "--model", str(shared_run), "--input", str(photos), "--output", str(output)]
        assert main([*words, "--workers", workers, "--batch-size", "3"]) == 0
        scores.append((output / "scores.csv").read_text())
    assert scores[0] == scores[1]


def test_score_of_an_image_is_independent_of_other_images(shared_run: Path, photos: Path, tmp_path: Path) -> None:
    scores = []
    for name, source in (("all", photos), ("one", photos / "sub")):
        words = ["predict", "--model", str(shared_run), "--input", str(source), "--output", str(tmp_path / name)]
        assert main(words) == 0
        scores.append(
            {r["image"]: r["score"] for r in json.loads((tmp_path / name / "scores.json").read_text())["images"]}
        )
    assert scores[0]["sub/a.png"] == pytest.approx(scores[1]["a.png"], abs=1e-5)


def test_interrupted_predict_shows_no_output_and_continues(
    shared_run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    words = ["predict", "--model", str(shared_run), "--input", str(photos), "--output", str(tmp_path / "results")]
    with monkeypatch.context() as patched:
        patched.setattr("semflow.app.cli.tables._page", stop)
        assert main(words) == 130
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith("results")] == []
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; run the same command again to continue"
    assert main(words) == 0
    assert "continuing: 4 of 4 images are done" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_interrupted_fit_resumes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "run"
    whole = semflow.training.fitting.train_epoch

    calls: list[object] = []

    def stop(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments)  # type: ignore[arg-type]

    words = [word if word != "1" or before != "--epochs" else "2" for before, word in _pairs(fit_words(data, output))]
    with monkeypatch.context() as patched:
        patched.setattr("semflow.training.fitting.train_epoch", stop)
        assert main(words) == 130
    assert main(["predict", "--model", str(output), "--input", str(data), "--output", str(tmp_path / "r")]) == 2
    assert main([*words, "--resume"]) == 0
    assert semflow.load(output).provenance.image_size == SIZE


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    return list(zip(["", *words], words, strict=False))


def test_category_selects_the_normal_class_of_cifar10(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from semflow.data import CIFAR10_CLASSES

    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in CIFAR10_CLASSES:
            for k in range(2):
                path = tmp_path / "cifar" / split / name / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    data, run = str(tmp_path / "cifar"), str(tmp_path / "run")
    small = ["--backbone", "test_efficientnet", "--weights", "random", "--image-size", "64", "--epochs", "1"]
    small += ["--recipe", "sanflow", "--set", "couplings.blocks", "1", "couplings.position_channels", "8"]
    assert (
        main(
            [
                "fit",
                "--data",
                data,
                "--output",
                run,
                *small,
                "--set",
                "couplings.blocks",
                "1",
                "couplings.position_channels",
                "8",
            ]
        )
        == 2
    )
    assert "--category" in capsys.readouterr().err
    words = ["--category", "cat", *small]
    assert main(["fit", "--data", data, "--output", run, *words]) == 0
    figures = tmp_path / "figures.json"
    assert main(["evaluate", "--model", run, "--data", data, "--category", "cat", "--json", str(figures)]) == 0
    assert json.loads(figures.read_text())["pixel_auroc"] is None
