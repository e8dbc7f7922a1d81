"""`torchrun -m semflow fit`: two processes, one run directory, one line for a mistake."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import semflow
from helpers.cli_cases import fit_words
from semflow.app.cli import main


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, "-m", "semflow", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)


def test_two_processes_fit_the_run_of_one(shared_data: Path, shared_run: Path, tmp_path: Path) -> None:
    done = torchrun(*fit_words(shared_data, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("training sanflow on 8 images") == 1
    assert ", cpu, 2 processes" in done.stdout
    assert done.stdout.count("wrote ") == 1
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["config.json", "log.jsonl", "model.safetensors"]
    logs = [json.loads((run / "log.jsonl").read_text()) for run in (shared_run, tmp_path / "run")]
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-5)
    # Adam divides by what may be rounding alone: the weights of steps so small are not, but the scores are.
    one, two = (semflow.load(run) for run in (shared_run, tmp_path / "run"))
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(two.predict(images).score, one.predict(images).score, rtol=1e-4, atol=1e-4)


def test_two_processes_measure_what_one_does(shared_data: Path, shared_run: Path, tmp_path: Path) -> None:
    figures = []
    for number, run in enumerate((torchrun, lambda *words: main(list(words)))):
        path = tmp_path / f"{number}.json"
        words = ["--model", str(shared_run), "--data", str(shared_data), "--device", "cpu", "--batch-size", "3"]
        run("evaluate", *words, "--json", str(path))
        figures.append(json.loads(path.read_text()))
    assert figures[0] == figures[1]
    assert figures[0]["images"] == 8


def test_an_error_of_one_process_is_said_once_and_ends_all(data: Path, tmp_path: Path) -> None:
    """The last image belongs to the second process alone; the first must not wait for it for ever."""
    last = sorted((data / "train" / "good").iterdir())[-1]
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    done = torchrun(*fit_words(data, tmp_path / "run"))
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert str(last) in said[0]
    assert not (tmp_path / "run" / "model.safetensors").exists()
