"""One model for several categories on the command line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import semflow
from helpers.cli_cases import SIZE, only_line, picture, save, words
from semflow.app.cli import main
from semflow.app.export import load
from semflow.data import open_dataset
from semflow.training import evaluate_categories
from semflow.training.checkpoint import read_config

GOOD = {"dots": 15, "stripes": 24}
TINY = [
    *("--recipe", "patchcore", "--backbone", "test_efficientnet", "--weights", "random", "--image-size", str(SIZE)),
    *("--device", "cpu", "--set", "coreset", "0.3", "backbone.strides", "8,16"),
]


def part(rng: np.random.Generator, name: str) -> np.ndarray:
    return picture(rng) if name == "stripes" else rng.integers(90, 110, (SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of different size, and other good images of each."""
    folder, rng = tmp_path_factory.mktemp("categories"), np.random.default_rng(7)
    for name, count in GOOD.items():
        for k in range(count):
            save(part(rng, name), folder / "data" / name / "train" / "good" / f"{k}.png")
        for k in range(10):
            save(part(rng, name), folder / "others" / name / f"{k}.png")
        for k in range(4):
            save(part(rng, name), folder / "data" / name / "test" / "good" / f"{k}.png")
            bad, mask = part(rng, name), np.zeros((SIZE, SIZE), np.uint8)
            mask[10:40, 20:40] = 255
            bad[mask > 0] = 255 - bad[mask > 0] // 2
            save(bad, folder / "data" / name / "test" / "hole" / f"{k}.png")
            save(mask, folder / "data" / name / "ground_truth" / "hole" / f"{k}_mask.png")
    return folder


@pytest.fixture(scope="module")
def run(root: Path) -> Path:
    assert fit(root, root / "run", "--hold-out", "9") == 0
    return root / "run"


def fit(root: Path, output: Path, *more: str, categories: tuple[str, ...] = ("--categories", "all")) -> int:
    return main(["fit", "--data", str(root / "data"), *categories, "--output", str(output), *more, *TINY])


def test_fit_trains_one_model_and_says_so(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(root, tmp_path / "run", "--hold-out", "9") == 0
    text = capsys.readouterr().out
    assert f"training patchcore on {15 + 24 - 18} images of 2 categories" in text
    assert "(18 more for calibration)" in text
    assert "With 9 calibration images of each category, the false-alarm rate of a category is at most 10 %" in text
    assert f"--input {root / 'data' / 'dots' / 'test'} " in text
    assert text.splitlines()[-1].endswith("--category dots")
    detector = semflow.load(tmp_path / "run")
    assert detector.decides_for == ("dots", "stripes")
    assert read_config(tmp_path / "run")["categories"] == ["dots", "stripes"]


def test_evaluate_prints_each_category_and_the_mean(
    root: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["evaluate", "--model", str(run), "--data", str(root / "data"), "--device", "cpu"]
    assert main([*start, "--json", str(tmp_path / "a.json"), "--report", str(tmp_path / "report")]) == 0
    text = capsys.readouterr().out
    for name in ("dots", "stripes", "mean"):
        assert len(re.findall(rf"^│ {name} ", text, re.MULTILINE)) == 2  # metrics and decisions
    found = json.loads((tmp_path / "a.json").read_text())
    tests = open_dataset(root / "data", "test", SIZE, categories="all")
    expected = evaluate_categories(semflow.load(run, device="cpu"), tests)
    assert found["categories"].keys() == expected.keys()
    for name, metrics in expected.items():
        for metric, value in metrics.items():
            assert found["categories"][name][metric] == pytest.approx(value, abs=1e-6)
            assert found[metric] == pytest.approx(np.mean([each[metric] for each in expected.values()]), abs=1e-6)
    assert (found["images"], found["anomalous_images"]) == (16, 8)
    scores = json.loads((tmp_path / "report" / "evaluation.json").read_text())["scores"]
    assert [score["image"] for score in scores][::4] == [
        f"{name}/test/{kind}/0.png" for name in GOOD for kind in ("good", "hole")
    ]
    assert main([*start, "--categories", "stripes", "dots", "--json", str(tmp_path / "b.json")]) == 0
    again = json.loads((tmp_path / "b.json").read_text())
    assert list(again["categories"]) == ["stripes", "dots"]
    assert again["categories"]["dots"] == found["categories"]["dots"]
    for more in (["--category", "dots"], ["--data", str(root / "data" / "dots")]):
        assert main([*start, *more, "--json", str(tmp_path / "c.json")]) == 0
        single = json.loads((tmp_path / "c.json").read_text())
        assert "categories" not in single
        assert single["aupro"] == found["categories"]["dots"]["aupro"]
        own = single["false_alarm_rate"] == found["categories"]["dots"]["false_alarm_rate"]
        assert own or "--data" in more  # without its name, all calibration images decide


def test_a_model_of_one_category_is_evaluated_on_several(root: Path, tmp_path: Path) -> None:
    assert fit(root, tmp_path / "run", categories=("--category", "stripes")) == 0
    words = ["evaluate", "--model", str(tmp_path / "run"), "--data", str(root / "data"), "--device", "cpu"]
    assert main([*words, "--categories", "all", "--json", str(tmp_path / "a.json")]) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["categories"].keys() == GOOD.keys()
    assert found["categories"]["stripes"]["false_alarm_rate"] is not None


def test_predict_decides_for_the_category_that_is_named(
    root: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, detector = root / "data" / "dots" / "test", semflow.load(run, device="cpu")
    images = open_dataset(photos, "predict", SIZE)
    for name in (None, "dots", "stripes"):
        output = tmp_path / str(name)
        more = [] if name is None else ["--category", name]
        assert main(words(run, photos, output, *more, "--drift", str(tmp_path / f"{name}.drift"))) == 0
        rows = json.loads((output / "scores.json").read_text())["images"]
        detector.set_category(name)
        for row, sample in zip(rows, images, strict=True):
            assert row["p_value"] == pytest.approx(detector.predict(sample.image[None]).p_value.item())
    capsys.readouterr()
    assert main(words(run, photos, tmp_path / "dots", "--category", "stripes")) == 2  # other decisions
    assert main(words(run, photos, tmp_path / "d", "--drift", str(tmp_path / "None.drift"), "--category", "dots")) == 2
    assert main(words(run, photos, tmp_path / "e", "--category", "bolts")) == 2
    assert "category must be one of dots, stripes, but got 'bolts'" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_calibrate_and_remember_by_category(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, others = tmp_path / "run", ["--data", str(root / "others")]
    assert fit(root, run, "--hold-out", "0") == 0
    calibrate = ["calibrate", "--model", str(run), "--device", "cpu"]
    assert main([*calibrate, *others, "--categories", "all"]) == 0  # those of the model
    assert "With 10 calibration images of each category" in capsys.readouterr().out
    assert semflow.load(run).calibration.counts.tolist() == [10, 10]
    for more, message in (
        ([*others, "--categories", "dots"], "must be those of the model, dots, stripes, but got dots"),
        ([*others, "--categories", "dots", "stripes", "--false-alarm-rate", "0.05"], "19 images of dots for"),
        (["--data", str(root / "data"), "--categories", "all"], "with train/; name a folder of images"),
    ):
        assert main([*calibrate, *more]) == 2
        assert message in only_line(capsys)
    more = ["--categories", "all", "--calibration", str(root / "others"), "--output", str(tmp_path / "with")]
    assert main(["remember", "--model", str(run), "--data", str(root / "data"), "--device", "cpu", *more]) == 0
    assert semflow.load(tmp_path / "with").decides_for == ("dots", "stripes")


def test_automatic_calibration_takes_the_smallest_category(root: Path, tmp_path: Path) -> None:
    assert fit(root, tmp_path / "auto") == 0  # a fifth of 15 images is too few
    detector = semflow.load(tmp_path / "auto")
    assert detector.provenance.calibration == "cross"
    assert detector.calibration.counts.tolist() == [15, 24]
    more = ["--calibration", str(root / "others")]
    assert fit(root, tmp_path / "others", *more) == 0
    assert semflow.load(tmp_path / "others").calibration.counts.tolist() == [10, 10]


def test_a_configuration_keeps_the_categories(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(root, tmp_path / "run", "--print-config", categories=("--categories", "stripes", "dots")) == 0
    config = tmp_path / "fit.toml"
    config.write_text(capsys.readouterr().out)
    assert main(["fit", "--print-config"]) == 0
    assert "categories" not in capsys.readouterr().out
    assert main(["fit", "--config", str(config), "--output", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert semflow.load(tmp_path / "run").provenance.categories == ("stripes", "dots")


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (("--categories", "dots", "bolts"), "must contain the category bolts, but got dots, stripes"),
        (("--categories", "dots", "dots"), "but got dots twice"),
        (("--categories", "all", "--category", "dots"), "--category must be left out with --categories, but got dots"),
    ],
)
def test_wrong_names_are_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], categories: tuple[str, ...], message: str
) -> None:
    assert fit(root, tmp_path / "run", categories=categories) == 2
    assert message in only_line(capsys)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_resumed_with_other_categories(
    root: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for categories in (("--categories", "dots"), ("--category", "dots")):
        assert fit(root, run, "--hold-out", "9", "--resume", categories=categories) == 2
        assert "must be resumed with categories = ['dots', 'stripes'], but got" in only_line(capsys)
    assert fit(root, run, "--hold-out", "9", "--resume") == 0


def test_an_exported_file_has_the_thresholds_of_a_category(
    root: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ["export", "--model", str(run), "--no-check", "--output"]
    assert main([*export, str(tmp_path / "dots.pt2"), "--category", "dots"]) == 0
    image = open_dataset(root / "data", "test", SIZE, category="dots")[0].image[None]
    detector = semflow.load(run, device="cpu")
    exported = load(tmp_path / "dots.pt2")
    detector.set_category("dots")
    assert exported.calibration_images == 9
    assert exported.predict(image).p_value.item() == pytest.approx(detector.predict(image).p_value.item())
    photos = root / "data" / "dots" / "test"
    assert main(words(tmp_path / "dots.pt2", photos, tmp_path / "out", "--category", "dots")) == 2
    assert "--category must be left out for the exported file" in capsys.readouterr().err
    start = ["evaluate", "--model", str(tmp_path / "dots.pt2"), "--data", str(root / "data"), "--device", "cpu"]
    assert main([*start, "--categories", "dots"]) == 0
    assert main([*start, "--categories", "all"]) == 2
    assert "which decides for this category, but got stripes" in capsys.readouterr().err
