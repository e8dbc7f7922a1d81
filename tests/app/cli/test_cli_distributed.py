"""`torchrun -m semflow`: two processes write one run directory and report an error in one line."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import semflow
from helpers.cli_cases import fit_words, page_data, snapshot
from semflow.app.cli import main


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, "-m", "semflow", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)


def test_two_processes_fit_the_same_run_as_one(shared_data: Path, shared_run: Path, tmp_path: Path) -> None:
    done = torchrun(*fit_words(shared_data, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("training sanflow on 8 images") == 1
    assert ", cpu, 2 processes" in done.stdout
    assert done.stdout.count("wrote ") == 1
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "config.json",
        "log.jsonl",
        "model.safetensors",
        "summary.json",
    ]
    logs = [json.loads((run / "log.jsonl").read_text()) for run in (shared_run, tmp_path / "run")]
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-5)
    # After two steps, only weights with tiny gradients differ, whose rounding errors Adam amplifies. Scores do not.
    one, two = (semflow.load(run) for run in (shared_run, tmp_path / "run"))
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(two.predict(images).score, one.predict(images).score, rtol=1e-4, atol=1e-4)


def test_two_processes_compute_the_same_metrics_as_one(shared_data: Path, shared_run: Path, tmp_path: Path) -> None:
    metrics = []
    for number, run in enumerate((torchrun, lambda *words: main(list(words)))):
        path = tmp_path / f"{number}.json"
        words = ["--model", str(shared_run), "--data", str(shared_data), "--device", "cpu", "--batch-size", "3"]
        words += ["--metrics", "aupimo", "aupro@0.05", "pixel_f1_max"]
        run("evaluate", *words, "--json", str(path), "--report", str(tmp_path / f"report {number}"))
        metrics.append(json.loads(path.read_text()))
    assert metrics[0] == metrics[1]
    first, second = (snapshot(tmp_path / f"report {number}") for number in (0, 1))
    assert first.keys() == second.keys()
    assert page_data(tmp_path / "report 0") == page_data(tmp_path / "report 1")
    assert len(page_data(tmp_path / "report 0")["entries"]) == 8
    assert metrics[0]["images"] == 8
    assert metrics[0]["aupimo"] is not None
    assert len(metrics[0]["aupimo_of_images"]) == 4


def test_error_of_one_process_is_reported_once_and_ends_all(data: Path, tmp_path: Path) -> None:
    """Only the second process reads the last image; the first must not wait forever."""
    last = sorted((data / "train" / "good").iterdir())[-1]
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    done = torchrun(*fit_words(data, tmp_path / "run"))
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert str(last) in errors[0]
    assert not (tmp_path / "run" / "model.safetensors").exists()
