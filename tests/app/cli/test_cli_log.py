"""`semflow fit --log`: training curves."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.cli_cases import fit_words, only_line, snapshot
from helpers.fake_loggers import FakeMLflow, FakeWriter
from semflow.app.cli import main
from semflow.errors import TrainingError


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    fakes = SimpleNamespace(mlflow=FakeMLflow())
    modules = {
        "mlflow": fakes.mlflow, "tensorboard": None,
        "torch.utils.tensorboard": SimpleNamespace(SummaryWriter=FakeWriter),
    }  # fmt: skip
    monkeypatch.setattr("semflow.training.loggers.import_optional", modules.__getitem__)
    return fakes


def test_fit_logs_to_each_named_logger_once(clients: SimpleNamespace, shared_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(fit_words(shared_data, run, "--log", "tensorboard", "mlflow", "mlflow")) == 0
    (made,) = clients.mlflow.runs.values()
    record = json.loads((run / "log.jsonl").read_text())
    assert (made.name, made.status, made.curves["loss"]) == ("run", "FINISHED", [(1, record["loss"])])
    (events,) = (run / "tensorboard").iterdir()
    assert f"1 loss {record['loss']!r}\n" in events.read_text()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_missing_extra_is_named_at_once(
    name: str, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert main(fit_words(shared_data, tmp_path / "run", "--log", name)) == 2
    line = only_line(capsys)
    assert line.startswith(f"error: {name} must be installed")
    assert f'"semflow[{name}]"' in line
    assert snapshot(tmp_path) == {}


def test_unknown_logger_is_a_usage_error(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(fit_words(shared_data, tmp_path / "run", "--log", "paper")) == 2
    assert "tensorboard" in only_line(capsys)


@pytest.mark.parametrize("others", [False, True])
def test_failed_start_leaves_no_curves(
    others: bool, clients: SimpleNamespace, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        if others:
            (tmp_path / "run" / "notes.txt").touch()
        raise TrainingError("loss must be finite, but got nan")

    monkeypatch.setattr("semflow.training.fitting.train_epoch", fail)
    assert main(fit_words(shared_data, tmp_path / "run", "--log", "tensorboard", "mlflow")) == 2
    assert snapshot(tmp_path).keys() == ({"run", "run/notes.txt"} if others else set())
    assert next(iter(clients.mlflow.runs.values())).status == "FAILED"
