"""Training: loss, seeds, resuming, run directories and errors."""

import json
import re
from functools import partial
from importlib.metadata import PackageNotFoundError
from itertools import pairwise

import pytest
import torch

from helpers import recipe_cases
from helpers.small_detector import make_images
from semflow.errors import CheckpointError, ConfigError, DataError, DeviceError, TrainingError
from semflow.training import TrainingConfig, checkpoint, evaluate, fit
from semflow.training import fitting as training
from semflow.training.checkpoint import load_into, read_config


def state(detector):
    return {k: v.clone() for k, v in detector.state_dict().items()}


def assert_same(a, b) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_training_lowers_the_loss_and_keeps_the_backbone(build, images, tmp_path) -> None:
    detector = build()
    backbone = state(detector.features)
    fit(detector, images, epochs=12, learning_rate=5e-3, output=tmp_path / "run", progress=False)
    lines = [json.loads(x) for x in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [x["epoch"] for x in lines] == list(range(1, 13))
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.05
    assert lines[-1]["learning_rate"] < lines[3]["learning_rate"]
    assert_same(backbone, state(detector.features))
    assert not detector.training


def test_trained_detector_finds_unseen_defects(build, images) -> None:
    """The defect is a striped patch on a smooth texture, which synthesis does not produce."""
    detector = fit(build(), images, epochs=60, learning_rate=5e-3, progress=False)
    test = list(images)
    stripes = (torch.arange(32) % 2).float().expand(3, 32, 32)
    for i in range(5):
        mask = torch.zeros(32, 32, dtype=torch.bool)
        mask[4 + i : 18 + i, 6:20] = True
        test.append(images[i]._replace(label=1, anomaly_mask=mask, image=torch.where(mask, stripes, images[i].image)))
    result = evaluate(detector, test)
    assert result["image_auroc"] > 0.9
    assert result["pixel_auroc"] > 0.9


def test_model_depends_on_the_seed_only(build, images) -> None:
    a, b, c = (fit(build(), images, epochs=2, seed=seed, progress=False) for seed in (0, 0, 1))
    assert_same(state(a), state(b))
    assert any(not torch.equal(x, y) for x, y in zip(state(a).values(), state(c).values(), strict=True))


@pytest.mark.parametrize("synthesis", [True, False])
def test_number_of_workers_does_not_change_the_model(build, images, synthesis) -> None:
    a, b = (fit(build(synthesis=synthesis), images, epochs=2, workers=w, progress=False) for w in (0, 2))
    assert_same(state(a), state(b))


@pytest.mark.parametrize("synthesis", [True, False])
def test_interrupted_run_resumes_to_the_same_model(build, images, tmp_path, monkeypatch, synthesis) -> None:
    build = partial(build, synthesis=synthesis)
    whole = fit(build(), images, epochs=4, output=tmp_path / "whole", progress=False)

    run, train_epoch = tmp_path / "killed", training.train_epoch

    def killed(job, at, display):
        if at.epoch == 2:
            raise KeyboardInterrupt
        return train_epoch(job, at, display)

    monkeypatch.setattr(training, "train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(build(), images, epochs=4, output=run, checkpoint_seconds=0, progress=False)
    assert sorted(p.name for p in run.iterdir()) == ["checkpoint.safetensors", "config.json", "log.jsonl"]
    with pytest.raises(CheckpointError, match="finish training with semflow fit --resume"):
        load_into(build(), run)
    monkeypatch.setattr(training, "train_epoch", train_epoch)

    with pytest.raises(CheckpointError, match="but got one that holds a run"):
        fit(build(), images, epochs=4, output=run, progress=False)
    with pytest.raises(CheckpointError, match=r"must be resumed with training\.epochs = 4, but got 5"):
        fit(build(), images, epochs=5, output=run, resume=True, progress=False)
    with pytest.raises(CheckpointError, match=r"arguments.*seed|arguments"):
        fit(build(seed=1), images, epochs=4, output=run, resume=True, progress=False)

    resumed = fit(build(), images, epochs=4, output=run, resume=True, progress=False)
    assert_same(state(whole), state(resumed))
    assert sorted(p.name for p in run.iterdir()) == ["config.json", "log.jsonl", "model.safetensors", "summary.json"]
    epochs = [json.loads(x)["epoch"] for x in (run / "log.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3, 4]


def test_resume_of_a_finished_run_trains_nothing(build, images, tmp_path) -> None:
    whole = fit(build(), images, epochs=2, output=tmp_path / "run", progress=False)
    before = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    again = fit(build(), images, epochs=2, output=tmp_path / "run", resume=True, progress=False)
    assert_same(state(whole), state(again))
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == before
    fit(
        build(), images, epochs=2, output=tmp_path / "run", resume=True, progress=False,
        calibration=make_images(30, seed=1), false_alarm_rate=0.1,
    )  # fmt: skip
    calibrated = load_into(build(), tmp_path / "run")
    assert (calibrated.calibration.count, calibrated.false_alarm_rate) == (30, 0.1)


def test_runs_of_earlier_versions_are_resumed(tmp_path) -> None:
    newer = [("training", "accumulate"), ("training", "precision"), ("couplings", "kind"), ("couplings", "subnet")]
    fit(recipe_cases.small("cflow_ad"), recipe_cases.images(4), epochs=1, output=tmp_path, progress=False)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["arguments"]["couplings"].pop("kind") == "affine"
    for values in (config, config["arguments"]):
        for group, name in newer:
            values.get(group, {}).pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    fit(recipe_cases.small("cflow_ad"), recipe_cases.images(4), epochs=1, output=tmp_path, resume=True, progress=False)


def test_resume_of_a_finished_run_keeps_its_false_alarm_rate(build, images, tmp_path) -> None:
    again = partial(
        fit,
        dataset=images,
        epochs=1,
        output=tmp_path / "run",
        resume=True,
        progress=False,
        calibration=make_images(30, seed=1),
    )
    assert again(build(), false_alarm_rate=0.1).false_alarm_rate == 0.1
    assert again(build(), false_alarm_rate=0.1).false_alarm_rate == 0.1
    assert again(build()).false_alarm_rate == 0.1
    with pytest.raises(CheckpointError, match=r"with false_alarm_rate = 0\.1, .* but got 0\.09;"):
        again(build(), false_alarm_rate=0.09)


def test_failed_write_keeps_the_old_file(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.replace_file(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_versions_leave_out_packages_without_metadata(monkeypatch) -> None:
    def version(name: str) -> str:
        if name == "pillow":  # replaced by pillow-simd
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(checkpoint.metadata, "version", version)
    assert checkpoint.versions().keys() == {"semflow", "python", "torch", "timm", "numpy"}


def test_loaded_model_equals_the_trained_detector(build, images, tmp_path) -> None:
    run = tmp_path / "run"
    detector = fit(build(seed=3), images, epochs=1, output=run, progress=False)
    other = load_into(build(seed=4), run)
    assert_same(state(detector), state(other))
    batch = torch.stack([s.image for s in images])
    assert torch.equal(detector.predict(batch).anomaly_map, other.predict(batch).anomaly_map)
    assert read_config(run)["recipe"] == "small"


def test_damaged_runs_raise_errors_that_name_the_file(build, images, tmp_path) -> None:
    run = tmp_path / "run"
    fit(build(), images, epochs=1, output=run, progress=False)
    with pytest.raises(CheckpointError, match=r"must contain config\.json, but got"):
        read_config(tmp_path)
    model = run / "model.safetensors"
    content = model.read_bytes()
    model.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=re.escape(str(model)) + " must be a safetensors file"):
        load_into(build(), run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(CheckpointError, match="must have format 1, but got 99"):
        read_config(run)
    (run / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="must be JSON with a format number"):
        read_config(run)


def test_fit_rejects_invalid_arguments(build, images, tmp_path) -> None:
    with pytest.raises(DataError, match="at least one image"):
        fit(build(), [], progress=False)
    with pytest.raises(ConfigError, match="epochs must be at least 0"):
        fit(build(), images, epochs=-1, progress=False)
    with pytest.raises(ConfigError, match="schedule"):
        fit(build(), images, training=TrainingConfig(schedule="linear"), progress=False)
    with pytest.raises(ConfigError, match="output must be a run directory to resume"):
        fit(build(), images, resume=True, progress=False)
    with pytest.raises(DeviceError, match="device must be available, but got nonsense"):
        fit(build(), images, device="nonsense", progress=False)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="other files"):
        fit(build(), images, output=tmp_path, progress=False)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="cuda"):
            fit(build(), images, device="cuda", progress=False)


def test_diverging_loss_names_step_and_epoch(build, images) -> None:
    with pytest.raises(TrainingError, match=r"must .* but got \S+ at step \d+ of epoch \d, .* below 1000000"):
        fit(build(), images, training=TrainingConfig(4, 4, 1e6, "constant"), progress=False)


def test_learning_rate_schedules() -> None:
    plan = TrainingConfig(learning_rate=2.0)
    rates = [plan.learning_rate_at(t / 1000) for t in range(1001)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[-1] == pytest.approx(0.002)
    peak = max(range(1001), key=rates.__getitem__)
    assert 80 <= peak <= 110
    assert all(a <= b for a, b in pairwise(rates[: peak + 1]))
    assert all(a >= b for a, b in pairwise(rates[peak:]))
    assert {TrainingConfig(schedule="constant").learning_rate_at(t / 7) for t in range(8)} == {5e-4}


def test_progress_prints_plain_lines_without_a_terminal(build, images, capsys) -> None:
    fit(build(), images, epochs=3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(re.fullmatch(r"epoch \d/3  loss -?\d+\.\d{4}  \d+ s elapsed, about \d+ s left", x) for x in lines)
