"""Calibration on the command line, and decisions of predict and evaluate."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import semflow
from helpers.cli_cases import SIZE, fit_words, page_data, picture, save
from semflow.app.cli import main
from semflow.app.cli.command import printed
from semflow.app.cli.console import decided
from semflow.app.report import contour
from semflow.data import open_dataset


@pytest.fixture(scope="module")
def normal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("normal") / "good"
    rng = np.random.default_rng(7)
    for number in range(12):
        save(picture(rng), folder / f"{number:02d}.png")
    return folder


@pytest.fixture
def run(shared_run: Path, tmp_path: Path) -> Path:
    """Copy the trained run, to calibrate it."""
    return Path(shutil.copytree(shared_run, tmp_path / "run"))


def test_calibrated_run_decides(
    run: Path, normal: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", "--model", str(run), "--data", str(normal)]) == 0
    assert (
        "With 12 calibration images the false-alarm rate is at most 10 % on average; for this"
        in capsys.readouterr().out
    )
    detector = semflow.load(run)
    assert (detector.calibration.count, detector.false_alarm_rate) == (12, 0.1)
    output = tmp_path / "results"
    words = ["predict", "--model", str(run), "--input", str(shared_data), "--output", str(output)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    with (output / "scores.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    content = json.loads((output / "scores.json").read_text())
    assert content["false_alarm_rate"] == 0.1
    for record, row, sample in zip(content["images"], table, open_dataset(shared_data, "predict", SIZE), strict=True):
        prediction = detector.predict(sample.image[None])
        assert record["p_value"] == float(row["p_value"]) == pytest.approx(prediction.p_value.item())
        assert record["is_anomalous"] == (row["is_anomalous"] == "True") == prediction.is_anomalous.item()
        with Image.open(output / record["mask"]) as mask:
            assert np.array_equal(np.asarray(mask) > 0, prediction.mask[0].numpy())
    page = (output / "index.html").read_text()
    alarms = sum(record["is_anomalous"] for record in content["images"])
    decision = decided(alarms, 8, 0.1)
    assert f"{decision}\n" in printed
    assert f"{decision[0].upper()}{decision[1:]} on average, for images like the calibration images." in page
    assert main(words) == 0  # again, for what is complete
    assert f"{decision}\n" in capsys.readouterr().out
    shown = page_data(output)
    assert shown["rate"] == 0.1
    assert {row["name"]: (row["score"], row["p"], row["called"]) for row in shown["entries"]} == {
        record["image"]: (record["score"], record["p_value"], record["is_anomalous"]) for record in content["images"]
    }
    labels = {row["name"]: row["label"] for row in shown["entries"]}
    assert labels == {name: int(not name.startswith("good/")) for name in labels}  # of a test set

    figures = tmp_path / "figures.json"
    names = ["seg_f1", "class_f1", "calibration_error"]
    words = ["evaluate", "--model", str(run), "--data", str(shared_data), "--metrics", *names, "--json", str(figures)]
    assert main([*words, "--false-alarm-rate", "0.5"]) == 0
    assert "calibrated rate" in capsys.readouterr().out
    found = json.loads(figures.read_text())
    detector.calibration.set_rate(0.5)
    expected = semflow.evaluate(detector, open_dataset(shared_data, "test", SIZE), metrics=names)
    for name in ("false_alarm_rate", "detection_rate", "mask_false_alarm_rate", *names):
        assert found[name] == expected[name]
    assert found["calibrated_false_alarm_rate"] == 0.5
    assert semflow.load(run).false_alarm_rate == 0.1


def test_predict_at_another_rate_is_another_output(run: Path, normal: Path, shared_data: Path, tmp_path: Path) -> None:
    assert main(["calibrate", "--model", str(run), "--data", str(normal), "--false-alarm-rate", "0.3"]) == 0
    words = ["predict", "--model", str(run), "--input", str(shared_data / "test" / "hole"), "--output"]
    assert main([*words, str(tmp_path / "a"), "--false-alarm-rate", "0.9"]) == 0
    assert main([*words, str(tmp_path / "a"), "--false-alarm-rate", "0.1"]) == 2
    assert json.loads((tmp_path / "a" / "scores.json").read_text())["false_alarm_rate"] == 0.9


def test_failed_calibration_changes_nothing(
    run: Path, normal: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    words = ["calibrate", "--model", str(run), "--data"]
    for wrong, message in (
        (
            [*words, str(normal), "--false-alarm-rate", "0.01"],
            "must have at least 99 images for false_alarm_rate 0.01, but got 12",
        ),
        ([*words, str(normal), "--false-alarm-rate", "1"], "--false-alarm-rate must be between 0 and 1"),
        ([*words, str(shared_data)], "--data must be a folder of good images, but got"),
        ([*words, str(tmp_path / "none")], "none must be a folder"),
        (["predict", "--model", str(run), "--input", str(normal), "--output", str(tmp_path / "r"), *RATE], "calibrate"),
        (["evaluate", "--model", str(run), "--data", str(shared_data), *RATE], "must be calibrated"),
    ):
        assert main(wrong) == 2
        assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


RATE = ["--false-alarm-rate", "0.2"]


def test_calibrate_rejects_training_images_in_any_format(
    run: Path, normal: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(normal, tmp_path / "data"))
    for number in (3, 5):
        with Image.open(shared_data / "train" / "good" / f"{number}.png") as image:
            image.save(data / f"copy {number}.bmp")
    words = ["calibrate", "--model", str(run), "--data", str(data)]
    before = (run / "model.safetensors").read_bytes()
    assert main(words) == 2
    (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert error.startswith(f"error: {data / 'copy 3.bmp'} must not be a training image")
    assert (run / "model.safetensors").read_bytes() == before
    detector = semflow.load(run)
    detector.provenance = replace(detector.provenance, fingerprints=())
    semflow.save(detector, run)
    assert main(words) == 0  # without fingerprints the images are not recognized


@pytest.mark.parametrize(("more", "lines"), [((), 1), (("--hold-out", "0"), 0)])
def test_fit_says_once_that_images_are_too_few_for_any_rate(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], lines: int
) -> None:
    output = tmp_path / "a run"
    assert main(fit_words(shared_data, output, *more)) == 0
    expected = (
        "no decisions yet: 8 images are fewer than the 9 that the highest default false-alarm rate, 10 %, needs; "
        "photograph 9 or more other good parts, then: " + printed(["calibrate", "--model", output, "--data", "FOLDER"])
    )
    assert capsys.readouterr().out.splitlines().count(expected) == lines


def test_decision_on_one_image_is_in_the_singular(
    run: Path, normal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", "--model", str(run), "--input", str(normal / "00.png"), "--output"]
    assert main([*words, str(tmp_path / "bare")]) == 0
    printed = capsys.readouterr().out
    assert "scored 1 image; the most anomalous is 00.png" in printed
    assert "called" not in printed  # not calibrated
    assert main(["calibrate", "--model", str(run), "--data", str(normal)]) == 0
    assert main([*words, str(tmp_path / "results")]) == 0
    assert re.search(
        r"^the image is called (normal|anomalous), at a false-alarm rate of 10 %$",
        capsys.readouterr().out,
        re.MULTILINE,
    )


def test_fit_calibrates_on_given_or_held_out_images(
    shared_data: Path, normal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit_words(shared_data, tmp_path / "given", "--calibration", str(normal))) == 0
    assert semflow.load(tmp_path / "given").calibration.count == 12
    words = ["--hold-out", "4", "--false-alarm-rate", "0.2"]
    assert main(fit_words(shared_data, tmp_path / "held", *words)) == 0
    assert semflow.load(tmp_path / "held").calibration.count == 4
    assert json.loads((tmp_path / "held" / "config.json").read_text())["images"] == 4
    capsys.readouterr()
    train = str(shared_data / "train" / "good")
    for wrong, message in (
        (["--hold-out", "4"], "must have at least 9 images for false_alarm_rate 0.1"),
        (["--hold-out", "4", "--calibration", str(normal)], "--hold-out must be left out with --calibration"),
        (["--hold-out", "-1"], "--hold-out must be at least 0"),
        (["--calibration", train, "--false-alarm-rate", "0.2"], "must not be a training image"),
    ):
        assert main(fit_words(shared_data, tmp_path / "wrong", *wrong)) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()


def test_fit_trains_and_calibrates_on_all_images(
    normal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = fit_words(normal, tmp_path / "given", "--hold-out", "cross", "--false-alarm-rate", "0.08")
    assert main(words) == 0
    printed = capsys.readouterr()
    assert f"on 12 images of {normal} (all for calibration too)" in printed.out
    assert "With all 12 images for training and calibration the false-alarm rate is about 8 % on average" in printed.out
    assert [line for line in printed.err.splitlines() if line.startswith("calibration: model 5 of 5, without 2 images")]
    given = semflow.load(tmp_path / "given")
    assert (given.calibration.count, given.provenance.calibration) == (12, "cross")
    assert json.loads((tmp_path / "given" / "config.json").read_text())["images"] == 12
    assert main([*words, "--resume"]) == 0
    capsys.readouterr()
    assert main([*words, "--print-config"]) == 0  # also in a file
    file = tmp_path / "config.toml"
    file.write_text(capsys.readouterr().out)
    assert 'hold_out = "cross"' in file.read_text()
    assert main(["fit", "--config", str(file), "--output", str(tmp_path / "again"), "--device", "cpu"]) == 0
    again = semflow.load(tmp_path / "again")
    assert torch.equal(again.calibration.scores, given.calibration.scores)
    capsys.readouterr()
    assert main([*words[:-4], "--hold-out", "crossed"]) == 2
    assert "crossed" in capsys.readouterr().err
    for wrong, message in (
        (["--hold-out", "cross", "--calibration", str(normal)], "--hold-out must be left out with --calibration"),
        (["--hold-out", "cross", "--false-alarm-rate", "0.05"], "must have at least 19 images for false_alarm_rate"),
    ):
        assert main(fit_words(normal, tmp_path / "wrong", *wrong)) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()


def test_few_images_are_trained_and_calibrated_on_by_default(
    normal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit_words(normal, tmp_path / "run")) == 0
    assert "no decisions yet" not in capsys.readouterr().out
    detector = semflow.load(tmp_path / "run")
    assert (detector.calibration.count, detector.false_alarm_rate) == (12, 0.1)


def test_remember_calibrates_on_all_images_without_a_trained_flow(
    normal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--data", str(normal), "--output", str(tmp_path / "padim"), "--recipe", "padim", "--image-size"]
    words += [str(SIZE), "--backbone", "test_efficientnet", "--weights", "random", "--device", "cpu", "--hold-out", "0"]
    assert main(words) == 0
    assert semflow.load(tmp_path / "padim").calibration.count == 0
    words = ["remember", "--model", str(tmp_path / "padim"), "--data", str(normal), "--hold-out", "cross"]
    assert main([*words, "--size", "0", "--device", "cpu"]) == 0
    assert "With all 12 images for training and calibration" in capsys.readouterr().out
    assert semflow.load(tmp_path / "padim").provenance.calibration == "cross"


def test_contour_surrounds_its_mask_only() -> None:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[4:8, 8:12] = True
    for size in ((64, 32), (16, 16), (5, 5)):
        drawn = np.asarray(contour(Image.new("RGB", size), mask)).any(2)
        rows, columns = np.nonzero(drawn)
        assert abs(rows.min() - 4 * size[1] / 16) <= 2
        assert abs(rows.max() - 8 * size[1] / 16) <= 2
        assert abs(columns.min() - 8 * size[0] / 16) <= 2
        assert abs(columns.max() - 12 * size[0] / 16) <= 2
    large = np.asarray(contour(Image.new("RGB", (64, 32)), mask)).any(2)
    assert not large[10:14, 35:45].any()  # the inside stays visible
    nothing = contour(Image.new("RGB", (8, 8)), torch.zeros(4, 4, dtype=torch.bool))
    assert not np.asarray(nothing).any()
