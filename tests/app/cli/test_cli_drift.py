"""`--drift`: a test of drift that is kept over runs of predict."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import semflow
from helpers.cli_cases import picture, save
from semflow.app.cli import main
from semflow.app.cli.inputs import fingerprint
from semflow.detectors import DriftTest


def photographs(folder: Path, count: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for number in range(count):
        save(picture(rng), folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def calibrated(shared_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drift")
    run = Path(shutil.copytree(shared_run, folder / "run"))
    assert main(["calibrate", "--model", str(run), "--data", str(photographs(folder / "good", 12, 7))]) == 0
    return run


def words(run: Path, images: Path, output: Path, file: Path, *more: str) -> list[str]:
    return [
        "predict",
        "--model",
        str(run),
        "--input",
        str(images),
        "--output",
        str(output),
        "--drift",
        str(file),
        *more,
    ]


def test_predict_adds_each_image_once_over_all_runs(
    calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, images = tmp_path / "parts.drift", photographs(tmp_path / "new", 5, 1)
    assert main(words(calibrated, images, tmp_path / "first", file)) == 0
    first, printed = DriftTest.load(file), capsys.readouterr()
    passed = [p > 0.1 for p in predicted(calibrated, images)]
    assert first.count == sum(passed) > 0
    assert f"no sign of drift in {first.count} images that passed as good: evidence 1" in printed.out
    assert "caution" not in printed.err
    assert main(words(calibrated, images, tmp_path / "first", file)) == 0  # is complete already
    photographs(images, 8, 1)  # the same five, and three more
    assert main(words(calibrated, images, tmp_path / "second", file)) == 0
    second = DriftTest.load(file)
    assert second.count == sum(p > 0.1 for p in predicted(calibrated, images))
    whole = tmp_path / "whole.drift"
    assert main(words(calibrated, images, tmp_path / "third", whole)) == 0
    assert DriftTest.load(whole).evidence == pytest.approx(second.evidence)


def predicted(run: Path, images: Path) -> list[float]:
    from semflow.data import open_dataset

    detector = semflow.load(run)
    dataset = open_dataset(images, "predict", detector.provenance.image_size)
    return [detector.predict(sample.image[None]).p_value.item() for sample in dataset]


def test_drift_is_one_line_on_standard_error(
    calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, rng = tmp_path / "parts.drift", np.random.default_rng(0)
    test = DriftTest(12, 0.1, origin=fingerprint(calibrated))
    test.update(rng.random(100), rng.choice([2, 3], 100) / 13)  # all among the highest of the calibration
    test.save(file)
    assert test.warned
    assert main(words(calibrated, photographs(tmp_path / "new", 3, 1), tmp_path / "out", file)) == 0
    printed = capsys.readouterr()
    (line,) = (line for line in printed.err.splitlines() if "caution" in line)
    assert line.startswith("caution: images that pass as good no longer score as before, evidence ")
    assert "a probability of at most 1 %; check light, camera and material, and calibrate again" in line
    assert "no sign of drift" not in printed.out
    assert DriftTest.load(file).warned


def test_tests_of_other_models_are_refused_before_the_work(
    calibrated: Path, shared_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, images = tmp_path / "parts.drift", photographs(tmp_path / "new", 3, 1)
    DriftTest(12, 0.1, origin=fingerprint(calibrated)).save(file)
    again = Path(shutil.copytree(calibrated, tmp_path / "again"))
    assert main(["calibrate", "--model", str(again), "--data", str(photographs(tmp_path / "good", 10, 8))]) == 0
    other, before = tmp_path / "other", file.read_bytes()
    other.write_bytes(b"text")
    for wrong, message in (
        (words(shared_run, images, tmp_path / "out", file), "must be calibrated for --drift"),
        (
            words(again, images, tmp_path / "out", file),
            "of its false-alarm rate and category, but got",
        ),
        (words(calibrated, images, tmp_path / "out", file, "--false-alarm-rate", "0.3"), "name a new file"),
        (words(calibrated, images, tmp_path / "out", other), "other must be a safetensors file"),
        (words(calibrated, images, tmp_path / "out", tmp_path / "other" / "a"), "other must be a folder"),
    ):
        capsys.readouterr()
        assert main(wrong) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert (file.read_bytes(), other.read_bytes()) == (before, b"text")
