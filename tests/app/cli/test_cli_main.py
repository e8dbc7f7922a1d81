"""Behavior of every command: usage errors, one-line messages, interrupts, and help."""

import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.cli_cases import only_line, snapshot
from semflow import __version__
from semflow.app.cli import main
from semflow.errors import ConfigError
from semflow.files import staged_folder


@pytest.mark.parametrize(
    ("words", "named"),
    [(["evaluate"], "--data"), (["dance"], "dance"), (["fit", "--data"], "--data"), (["--verbose"], "--verbose")],
)
def test_usage_error_names_the_option(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    line = only_line(capsys)
    assert named in line
    assert "--help" in line


def test_internal_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("semflow.app.cli.evaluate.run", wrong)
    with pytest.raises(ZeroDivisionError):
        main(["evaluate", "--model", str(tmp_path), "--data", str(tmp_path)])


def test_sigterm_ends_like_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(_: object) -> None:
        with staged_folder(tmp_path / "results") as staged:
            (staged / "half.txt").touch()
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("SIGTERM must interrupt the command")

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
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "error: out of memory; choose fewer"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "error: out of memory; choose"),
    ],
)
def test_system_errors_and_out_of_memory_are_one_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> None:
        raise error

    monkeypatch.setattr("semflow.app.cli.evaluate.run", refuse)
    assert main(["evaluate", "--model", str(tmp_path), "--data", str(tmp_path)]) == 2
    assert only_line(capsys).startswith(line)


def test_log_messages_of_libraries_are_hidden(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


def test_error_of_a_process_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    done = run_process("fit", "--data", str(tmp_path / "photos"), "--output", str(tmp_path / "run"))
    assert done.returncode == 2
    assert done.stdout == f"semflow {__version__} is starting\n"
    assert len(done.stderr.splitlines()) == 1
    assert "photos" in done.stderr
    assert snapshot(tmp_path) == {"photos": None}


def test_help_takes_less_than_a_second_of_cpu_time() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_process("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    assert all(name in done.stdout for name in ("demo", "fit", "evaluate", "predict"))


@pytest.mark.parametrize("command", ["demo", "fit", "evaluate", "predict"])
def test_help_lists_the_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    for option in {"demo": ["--output", "--seed"], "fit": ["--recipe", "--resume"]}.get(command, ["--model"]):
        assert option in shown
