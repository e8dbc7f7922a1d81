"""Every option of every command is done, or refused: none is accepted and ignored."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import semflow
from helpers.cli_cases import SIZE, fit_words, only_line, picture, save, snapshot
from semflow.app.cli import main
from semflow.app.cli.options import Calibrate, Evaluate, Export, Fit, Predict, Remember
from semflow.training.checkpoint import read_config


def good(folder: Path, seed: int, count: int = 9) -> Path:
    rng = np.random.default_rng(seed)
    for number in range(count):
        save(picture(rng), folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def places(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a finished run that is calibrated on `a`, one that is not, and other images."""
    root = tmp_path_factory.mktemp("places")
    made = {"a": good(root / "a", 11), "b": good(root / "b", 12), "data": shared_data, "root": root}
    made["other"] = good(root / "other" / "train" / "good", 13, 8)
    made["other"] = root / "other"
    for name, more in {"run": ["--calibration", str(made["a"])], "bare": []}.items():
        assert main(fit_words(shared_data, root / name, *more)) == 0
        made[name] = root / name
    made["mask"] = save(np.tri(SIZE, dtype=np.uint8) * 255, root / "mask.png")
    weights = root / "here" / "weights.pth"
    weights.parent.mkdir()
    import timm
    import torch

    torch.save(timm.create_model("resnet18").state_dict(), weights)
    (root / "there").mkdir()
    made["moved"] = Path(shutil.copy(weights, root / "there" / "same.pth"))
    words = [str(weights) if word == "random" else word for word in fit_words(shared_data, root / "of_file")]
    assert main(words) == 0
    made["of_file"] = root / "of_file"
    return made


REFUSED, FREE = "refused", "free"
# What another value of each option of fit does with a finished run that is resumed: refused, done (a test of its own),
# or free, because it changes nothing in the result.
RESUMED: dict[str, tuple[list[str], str]] = {
    "data": (["--data", "OTHER"], REFUSED),
    "output": ([], "the run itself"),
    "category": (["--category", "stripes"], REFUSED),
    "categories": (["--categories", "stripes"], REFUSED),
    "recipe": (["--recipe", "cflow_ad"], REFUSED),
    "backbone": (["--backbone", "resnet34"], REFUSED),
    "weights": (["--weights", "MOVED"], REFUSED),
    "image_size": (["--image-size", "96"], REFUSED),
    "resize": (["--resize", "pad"], REFUSED),
    "tile": (["--tile", "64"], REFUSED),
    "overlap": (["--overlap", "8"], REFUSED),
    "region": (["--region", "MASK"], REFUSED),
    "augment": (["--augment", "flip"], REFUSED),
    "epochs": (["--epochs", "3"], "test_finished_run_is_trained_further"),
    "batch_size": (["--batch-size", "2"], REFUSED),
    "precision": (["--precision", "bf16"], REFUSED),
    "seed": (["--seed", "1"], REFUSED),
    "calibration": (["--calibration", "B"], REFUSED),
    "hold_out": (["--hold-out", "2"], REFUSED),
    "false_alarm_rate": (["--false-alarm-rate", "0.3"], REFUSED),
    "allow_anomalous": (["--allow-anomalous"], FREE),
    "device": (["--device", "auto"], FREE),
    "workers": (["--workers", "1"], FREE),
    "resume": ([], "the option itself"),
    "log": ([], "test_finished_run_is_logged_afterwards"),
    "config": ([], "a file of the other options"),
    "print_config": ([], "prints what the other options say, and nothing else"),
    "set": (["--set", "training.learning_rate", "0.1"], REFUSED),
}


def test_every_option_of_fit_has_a_case() -> None:
    assert RESUMED.keys() == {field.name for field in dataclasses.fields(Fit)}


def resume(places: dict[str, Path], run: str, output: Path, *more: str, calibration: str | None = "a") -> int:
    """Resume a copy of a run with other options in the place of those that it was made with."""
    if not output.exists():
        shutil.copytree(places[run], output)
    given = [str(places[word.lower()]) if word.lower() in places else word for word in more]
    words = fit_words(places["data"], output, "--resume")
    if calibration is not None and not {"--calibration", "--hold-out"} & set(more):
        words += ["--calibration", str(places[calibration])]
    for name, value in pairwise(given):
        if name in words and name.startswith("--") and name != "--set":
            words[words.index(name) + 1] = value
    for start in range(len(given)):
        if given[start].startswith("--") and given[start] not in words:
            words += given[start : start + 2]
    if "--set" in given:
        start = words.index("--set") + 1
        words[start:start] = given[given.index("--set") + 1 :]
    return main(words)


@pytest.mark.parametrize("name", [name for name, case in RESUMED.items() if case[1] == REFUSED])
def test_resume_refuses_another_value(
    name: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(places["run"])
    capsys.readouterr()
    assert resume(places, "run", tmp_path / "run", *RESUMED[name][0]) == 2
    assert "must" in capsys.readouterr().err.splitlines()[-1]
    assert snapshot(tmp_path / "run") == before


@pytest.mark.parametrize("name", [name for name, case in RESUMED.items() if case[1] == FREE])
def test_resume_with_options_that_change_nothing(name: str, places: dict[str, Path], tmp_path: Path) -> None:
    before = snapshot(places["run"])
    assert resume(places, "run", tmp_path / "run", *RESUMED[name][0]) == 0
    assert snapshot(tmp_path / "run") == before


def test_resume_calibrates_a_finished_run_that_is_not(
    places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resume(places, "bare", tmp_path / "run", "--calibration", "B", "--false-alarm-rate", "0.2") == 0
    assert "With 9 calibration images" in capsys.readouterr().out
    calibrated = semflow.load(tmp_path / "run")
    assert (calibrated.calibration.count, calibrated.false_alarm_rate) == (9, 0.2)
    before = snapshot(tmp_path / "run")
    assert resume(places, "bare", tmp_path / "run", "--calibration", "B") == 0
    assert snapshot(tmp_path / "run") == before


@pytest.mark.parametrize("more", [["--calibration", "B"], ["--hold-out", "0"]])
def test_resume_keeps_the_calibration_of_a_finished_run(
    more: list[str], places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert resume(places, "run", tmp_path / "run", *more) == 2
    assert "must be resumed with calibration images" in capsys.readouterr().err
    assert resume(places, "run", tmp_path / "run", calibration=None) == 0  # nothing is asked for
    assert "With 9 calibration images" in capsys.readouterr().out


def test_resume_of_a_run_calibrated_later_names_the_images(places: dict[str, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(places["run"], tmp_path / "run"))
    assert main(["calibrate", "--model", str(run), "--data", str(places["b"]), "--device", "cpu"]) == 0
    assert resume(places, "run", run, "--calibration", "B") == 0
    assert resume(places, "run", run, "--calibration", "A") == 2


def test_finished_run_is_trained_further(
    places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert resume(places, "run", run, "--epochs", "3", calibration=None) == 2  # its calibration would be lost
    assert snapshot(run) == snapshot(places["run"])
    assert resume(places, "run", run, "--epochs", "3") == 0
    assert read_config(run)["training"]["epochs"] == 3
    assert [json.loads(line)["epoch"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert semflow.load(run).calibration.count == 9
    after = snapshot(run)
    assert after["model.safetensors"] != (places["run"] / "model.safetensors").read_bytes()
    assert sorted(after) == ["config.json", "log.jsonl", "model.safetensors", "summary.json"]
    assert resume(places, "run", run, "--epochs", "3") == 0
    assert snapshot(run) == after
    capsys.readouterr()
    assert resume(places, "run", run, "--epochs", "2") == 2
    assert "must be resumed with training.epochs = 3, but got 2" in only_line(capsys)


def test_interrupted_further_training_continues(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resume(places, "run", tmp_path / "whole", "--epochs", "4") == 0
    from semflow.training.run import Run

    monkeypatch.setattr(Run, "due", lambda self: True)
    save = Run.save

    def stop(self: Run, at: object) -> None:
        save(self, at)  # type: ignore[arg-type]
        if getattr(at, "epoch", 0) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", stop)
    assert resume(places, "run", tmp_path / "run", "--epochs", "4") == 130
    assert semflow.load(tmp_path / "run").calibration.count == 9  # the finished model is still there
    assert resume(places, "run", tmp_path / "run", "--epochs", "1") == 2
    monkeypatch.setattr(Run, "save", save)
    assert resume(places, "run", tmp_path / "run", "--epochs", "4") == 0
    ours, theirs = (semflow.load(tmp_path / name).state_dict() for name in ("run", "whole"))
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_weights_may_have_moved(places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    words = ["--weights", "MOVED"]
    assert resume(places, "of_file", tmp_path / "run", *words, calibration=None) == 0
    assert resume(places, "bare", tmp_path / "other", *words, calibration=None) == 2
    assert "must be resumed with backbone_digest" in capsys.readouterr().err


# Options of the other commands that must be refused in a combination in which they have no effect.
REFUSALS: dict[str, tuple[list[str], str]] = {
    "rate of too few images": (
        ["fit", "--data", "A", "--output", "NEW", "--false-alarm-rate", "0.01"],
        "at least 99 images for false_alarm_rate 0.01, but got 9; add images or use a rate of at least 0.1",
    ),
    "rate without images held out": (
        ["fit", "--data", "A", "--output", "NEW", "--hold-out", "0", "--false-alarm-rate", "0.2"],
        "false_alarm_rate",
    ),
    "both kinds of calibration": (
        ["fit", "--data", "A", "--output", "NEW", "--hold-out", "2", "--calibration", "B"],
        "--hold-out",
    ),
    "rate of a model without calibration": (
        ["predict", "--model", "BARE", "--input", "A", "--output", "NEW", "--false-alarm-rate", "0.2"],
        "--false-alarm-rate",
    ),
    "rate of a memory without calibration": (
        ["remember", "--model", "BARE", "--data", "A", "--output", "NEW", "--false-alarm-rate", "0.2"],
        "--false-alarm-rate",
    ),
    "images without a check": (
        ["export", "--model", "BARE", "--output", "NEW.pt2", "--images", "A", "--no-check"],
        "--images",
    ),
    "a GPU for Ray": (
        ["score", "--model", "BARE", "--input", "A", "--output", "NEW", "--device", "cuda:1"],
        "--device",
    ),
    "a category of a plain folder": (["evaluate", "--model", "BARE", "--data", "DATA", "--category", "x"], "category"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_option_without_effect_is_refused(
    name: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, named = REFUSALS[name]
    if given[0] == "score":
        pytest.importorskip("ray")
    paths = {"NEW": tmp_path / "new", "NEW.pt2": tmp_path / "new.pt2", **{k.upper(): v for k, v in places.items()}}
    words = [str(paths.get(word, word)) for word in given]
    if given[0] == "fit":
        small = fit_words(Path("none"), Path("none"))
        words += small[small.index("--epochs") :]
    capsys.readouterr()
    assert main(words) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


class _Watched:
    """Options that record which of them are read."""

    def __init__(self, options: object) -> None:
        self.options, self.read = options, set[str]()

    def __getattr__(self, name: str) -> object:
        self.read.add(name)
        return getattr(self.options, name)


def commands(places: dict[str, Path], folder: Path) -> Iterator[tuple[str, object]]:
    run = Path(shutil.copytree(places["run"], folder / "run"))
    mixed = Path(shutil.copytree(places["a"], folder / "mixed"))
    (mixed / "broken.png").write_text("not an image")
    yield "predict", Predict(run, folder / "results", mixed, on_error="skip", device="cpu")
    yield "evaluate", Evaluate(run, places["data"], json=folder / "metrics.json", device="cpu")
    yield "export", Export(run, folder / "new.pt2", images=places["b"])
    yield "calibrate", Calibrate(run, places["b"], device="cpu")
    yield "remember", Remember(run, places["data"], size=50, calibration=places["b"], device="cpu")


@pytest.mark.parametrize("number", range(5))  # score starts Ray; its options have tests of their own
def test_every_option_is_read(number: int, places: dict[str, Path], tmp_path: Path) -> None:
    """The least that an option needs to have an effect."""
    from importlib import import_module

    name, options = list(commands(places, tmp_path))[number]
    watched = _Watched(options)
    import_module(f"semflow.app.cli.{name}").run(watched)
    assert {field.name for field in dataclasses.fields(options)} <= watched.read  # type: ignore[arg-type]
