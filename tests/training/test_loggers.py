"""TensorBoard, MLflow and Weights & Biases: curves equal the log, also of resumed runs."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.after_epoch import AfterEpoch
from helpers.fake_loggers import FakeMLflow, FakeWandB, FakeWriter
from helpers.small_detector import make_detector, make_images
from semflow.errors import ConfigError
from semflow.training import LOGGERS, MLflow, RunStart, TensorBoard, TrainingConfig, WandB, fit

IMAGES = make_images(4)
NAMES = ("loss", "nll", "bce", "kl", "learning_rate", "largest_gradient", "seconds")


def train(output: Path | None, callbacks: list, **options):
    return fit(make_detector(), IMAGES, output=output, callbacks=callbacks, progress=False, **options)


def fail(detector, epoch: int) -> None:
    if epoch == 2:
        raise LookupError("stop")


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def curve(run: Path, name: str) -> list[tuple[int, float]]:
    return [(record["epoch"], record[name]) for record in log(run)]


@pytest.fixture
def clients(monkeypatch) -> SimpleNamespace:
    """Fake clients in the place of the real ones, whether these are installed or not."""
    fakes = SimpleNamespace(mlflow=FakeMLflow(), wandb=FakeWandB())
    modules = {
        "mlflow": fakes.mlflow, "wandb": fakes.wandb, "tensorboard": None,
        "torch.utils.tensorboard": SimpleNamespace(SummaryWriter=FakeWriter),
    }  # fmt: skip
    monkeypatch.setattr("semflow.training.loggers.import_optional", modules.__getitem__)
    return fakes


def logged(name: str, clients: SimpleNamespace, run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the curves of the only run of a fake client."""
    if name == "mlflow":
        (only,) = clients.mlflow.runs.values()
        return {key: only.curves[key] for key in NAMES}
    if name == "wandb":
        (only,) = clients.wandb.runs.values()
        return {key: [(step, values[key]) for step, values in only.rows] for key in NAMES}
    lines = [line.split() for path in sorted((run / "tensorboard").iterdir()) for line in path.open()]
    return {key: [(int(step), float(value)) for step, name, value, *_ in lines if name == key] for key in NAMES}


@pytest.mark.parametrize("name", LOGGERS)
def test_interrupted_and_longer_runs_have_one_curve(name: str, clients, tmp_path) -> None:
    run, make = tmp_path / "part", LOGGERS[name]
    with pytest.raises(LookupError):
        train(run, [AfterEpoch(fail), make()])  # which has no point of epoch 2 yet
    assert logged(name, clients, run)["loss"] == curve(run, "loss")[:1]
    train(run, [make()], resume=True)
    train(run, [make()], resume=True)  # finished
    train(run, [make()], resume=True, epochs=4)
    assert len(log(run)) == 4
    assert logged(name, clients, run) == {key: curve(run, key) for key in NAMES}
    assert json.loads((run / "loggers.json").read_text())[name]["epoch"] == 4


def test_epochs_that_a_killed_run_repeats_are_not_logged_again(clients, tmp_path) -> None:
    """The last checkpoint is older than the last epoch that was logged."""
    run, checkpoint = tmp_path / "part", []

    def keep(detector, epoch: int) -> None:
        if epoch == 3:
            checkpoint.append((run / "checkpoint.safetensors").read_bytes())  # of the second epoch

    train(run, [MLflow(), AfterEpoch(keep)], checkpoint_seconds=0)
    (run / "model.safetensors").unlink()
    (run / "checkpoint.safetensors").write_bytes(checkpoint[0])
    train(run, [MLflow()], resume=True)
    assert logged("mlflow", clients, run)["nll"] == curve(run, "nll")
    assert [epoch for epoch, _ in curve(run, "nll")] == [1, 2, 3]


def test_finished_run_is_logged_afterwards(clients, tmp_path) -> None:
    run = tmp_path / "part"
    train(run, [])
    train(run, [LOGGERS[name]() for name in LOGGERS], resume=True)
    for name in LOGGERS:
        assert logged(name, clients, run) == {key: curve(run, key) for key in NAMES}


def test_settings_and_summary(clients, tmp_path) -> None:
    train(tmp_path / "part", [MLflow(), WandB(project="parts"), TensorBoard()], calibration=1, false_alarm_rate=0.5)
    (run,) = clients.mlflow.runs.values()
    assert run.name == "part"
    assert (run.params["training.epochs"], run.params["images"], run.status) == (3, 3, "FINISHED")
    assert (run.curves["calibration_images"], run.curves["false_alarm_rate"]) == ([(0, 1.0)], [(0, 0.5)])
    (run,) = clients.wandb.runs.values()
    (options,) = clients.wandb.options
    assert (options["project"], options["name"], options["config"]["training.epochs"]) == ("parts", "part", 3)
    assert (run.summary["recipe"], run.summary["calibration_images"], run.exit_code) == ("small", 1, 0)
    (events,) = (tmp_path / "part" / "tensorboard").iterdir()
    assert events.read_text().splitlines()[-1].startswith("hparams 3 ")


def test_clipped_share(clients) -> None:
    detector = make_detector()
    fit(detector, IMAGES, TrainingConfig(1, 2, clip=1e-6), callbacks=[WandB()], progress=False)
    (run,) = clients.wandb.runs.values()
    assert [values["clipped_share"] for _, values in run.rows] == [1.0]
    logger = WandB()
    logger.begin(detector, RunStart(None, {}))
    logger.epoch(detector, {"epoch": 1, "steps": 8, "clipped": 2})
    assert clients.wandb.runs["id1"].rows == [(1, {"clipped_share": 0.25})]


def test_failed_training_marks_the_run(clients, tmp_path) -> None:
    with pytest.raises(LookupError):
        train(tmp_path / "part", [MLflow(), WandB(), AfterEpoch(fail)])
    assert next(iter(clients.mlflow.runs.values())).status == "FAILED"
    assert next(iter(clients.wandb.runs.values())).exit_code == 1
    assert not clients.mlflow.active


def test_run_inside_an_active_one_is_nested(clients, tmp_path) -> None:
    clients.mlflow.start_run(run_name="sweep")
    train(None, [MLflow()])
    assert [run.status for run in clients.mlflow.runs.values()] == ["RUNNING", "FINISHED"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"mlflow": 3}', '{"mlflow": {"run": "gone", "epoch": 2}}'])
def test_damaged_state_or_unknown_run_starts_a_new_curve(content: str, clients, tmp_path) -> None:
    run = tmp_path / "part"
    train(run, [])
    (run / "loggers.json").write_text(content)
    train(run, [MLflow()], resume=True)
    assert logged("mlflow", clients, run)["loss"] == curve(run, "loss")


def test_only_the_first_process_logs(clients, tmp_path) -> None:
    logger = MLflow()
    logger.begin(None, RunStart(tmp_path, {}, rank=1))
    logger.epoch(None, {"epoch": 1, "loss": 1.0})
    logger.end(None, {})
    logger.close()
    assert not clients.mlflow.runs
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "task"),
    [("init", "start a run"), ("log", "take the values of epoch 1"), ("summary", "take the summary")],
)
def test_error_of_a_client_is_one_of_semflow(method: str, task: str, clients, tmp_path, monkeypatch) -> None:
    def refuse(*args, **options):
        raise ConnectionError("no server")

    made = clients.wandb.init

    def init(**options):
        run = made(**options)
        setattr(run, method, SimpleNamespace(update=refuse) if method == "summary" else refuse)
        return run

    monkeypatch.setattr(clients.wandb, "init", refuse if method == "init" else init)
    with pytest.raises(ConfigError, match=f"^wandb must {task}, but got ConnectionError: no server$"):
        train(tmp_path / "part", [WandB()])


def installed(name: str) -> Callable:
    return pytest.mark.skipif(not _found(name), reason=f"needs the extra {name}")


def _found(name: str) -> bool:
    try:
        LOGGERS[name]()
    except ConfigError:
        return False
    return True


@installed("tensorboard")
def test_event_files_have_the_values_of_the_log(tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "part"
    with pytest.raises(LookupError):
        train(run, [AfterEpoch(fail), TensorBoard()])
    train(run, [TensorBoard()], resume=True)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for name in NAMES:
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(epoch, pytest.approx(value, rel=1e-6)) for epoch, value in curve(run, name)]
    assert "_hparams_/session_start_info" in events.summary_metadata


@pytest.mark.slow
@installed("mlflow")
def test_mlflow_has_the_values_of_the_log(tmp_path, monkeypatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "parts")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run = tmp_path / "part"
    with pytest.raises(LookupError):
        train(run, [AfterEpoch(fail), MLflow()])
    train(run, [MLflow()], resume=True)
    client, known = mlflow.MlflowClient(), json.loads((run / "loggers.json").read_text())["mlflow"]["run"]
    for name in NAMES:
        assert [(m.step, m.value) for m in client.get_metric_history(known, name)] == curve(run, name)
    found = client.get_run(known)
    assert (found.info.status, found.data.params["training.batch_size"]) == ("FINISHED", "4")


@pytest.mark.slow
@installed("wandb")
def test_wandb_writes_a_run_without_a_network(tmp_path, monkeypatch) -> None:
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    train(tmp_path / "part", [logger := WandB()])
    known = json.loads((tmp_path / "part" / "loggers.json").read_text())["wandb"]
    assert known["epoch"] == 3
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{known['run']}/*.wandb"))
    assert logger._run is None
