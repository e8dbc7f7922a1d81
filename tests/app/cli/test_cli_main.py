"""From words to a command, and from what goes wrong to one line: what holds for every command."""

import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers.cli_cases import only_line, snapshot
from semflow.app.cli import main
from semflow.errors import ConfigError
from semflow.files import staged_folder


@pytest.mark.parametrize(
    ("words", "named"),
    [(["fit"], "--data"), (["dance"], "dance"), (["fit", "--data"], "--data"), (["--verbose"], "--verbose")],
)
def test_words_that_are_no_command(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    line = only_line(capsys)
    assert named in line
    assert "--help" in line


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("semflow.app.cli.evaluate.run", wrong)
    with pytest.raises(ZeroDivisionError):
        main(["evaluate", "--model", str(tmp_path), "--data", str(tmp_path)])


def test_a_polite_kill_ends_like_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(_: object) -> None:
        with staged_folder(tmp_path / "results") as staged:
            (staged / "half.txt").touch()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    former = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("semflow.app.cli.evaluate.run", killed)
    assert main(["evaluate", "--model", str(tmp_path), "--data", str(tmp_path)]) == 130
    assert signal.getsignal(signal.SIGTERM) == former
    assert only_line(capsys) == "interrupted"
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "results"), "error: results: Permission denied"),
        (OSError(28, "No space left on device"), "error: No space left on device"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "error: out of memory; choose a smaller"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "error: out of memory; choose"),
    ],
)
def test_what_the_machine_refuses_is_one_line_too(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> None:
        raise error

    monkeypatch.setattr("semflow.app.cli.evaluate.run", refuse)
    assert main(["evaluate", "--model", str(tmp_path), "--data", str(tmp_path)]) == 2
    assert only_line(capsys).startswith(line)


def test_what_libraries_log_is_not_for_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a download's retries are: its end is what semflow says in one line."""
    logger = logging.getLogger("somebodys.library")
    logger.addHandler(logging.StreamHandler())

    def run(_: object) -> None:
        logger.warning("retrying in 1s")
        raise ConfigError("no network")

    monkeypatch.setattr("semflow.app.cli.evaluate.run", run)
    before = logging.root.manager.disable
    assert main(["evaluate", "--model", str(tmp_path), "--data", str(tmp_path)]) == 2
    assert only_line(capsys) == "error: no network"
    assert logging.root.manager.disable == before


def run_process(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "semflow", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_as_a_process_a_mistake_is_one_line(tmp_path: Path) -> None:
    """With everything that libraries might print on import."""
    (tmp_path / "photos").mkdir()
    done = run_process("fit", "--data", str(tmp_path / "photos"), "--output", str(tmp_path / "run"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "photos" in done.stderr
    assert snapshot(tmp_path) == {"photos": None}


def test_help_takes_less_than_a_second() -> None:
    """Of processor time, which does not depend on what else the machine is doing."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_process("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    assert all(name in done.stdout for name in ("demo", "fit", "evaluate", "predict"))


@pytest.mark.parametrize("command", ["demo", "fit", "evaluate", "predict"])
def test_each_command_explains_each_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    for option in {"demo": ["--output", "--seed"], "fit": ["--recipe", "--resume"]}.get(command, ["--model"]):
        assert option in shown
