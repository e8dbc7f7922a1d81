"""`torchrun` on two nodes, each with its own launcher, and after the loss of a node."""

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import semflow
from helpers.cli_cases import fit_words
from helpers.keeping import Kept
from semflow.app.cli import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux"),
]

# semflow with a checkpoint after every batch.
PROGRAM = """\
import sys
from functools import partial
import semflow.app.cli.fit as command
from semflow.app.cli import main
command.fit = partial(command.fit, checkpoint_seconds=0)
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def launched(folder: Path, backend: str, words: list[str]) -> Iterator[list[Kept]]:
    """Start one process on the first node and two on the second, and end them with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = folder / "program.py"
    program.write_text(PROGRAM)
    nodes: list[Kept] = []
    try:
        for number in (0, 1):
            start = ["--nnodes", "2", "--nproc-per-node", str(number + 1)]
            if backend == "c10d":
                start += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test"]
            else:
                start += ["--node-rank", str(number), "--master-addr", "127.0.0.1", "--master-port", port]
            command = [sys.executable, "-m", "torch.distributed.run", *start, str(program), *words]
            nodes.append(Kept(command, folder / f"node{number}.txt", {**os.environ, "OMP_NUM_THREADS": "1"}))
        yield nodes
    finally:
        for node in nodes:
            node.kill()


def same_scores(run: Path, other: Path) -> None:
    """Compare scores after a few steps. Weights with tiny gradients differ, whose rounding errors Adam amplifies."""
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    one, two = (semflow.load(path).predict(images).score for path in (run, other))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["static", "c10d"])
def test_two_nodes_fit_the_same_run_as_one_process(shared_data: Path, tmp_path: Path, backend: str) -> None:
    """With 8 images in batches of 3, one of the three processes has no image in the last batch."""
    words = ["--batch-size", "3"]
    with launched(tmp_path, backend, fit_words(shared_data, tmp_path / "run", *words)) as nodes:
        assert [node.wait() for node in nodes] == [0, 0], [node.said() for node in nodes]
    assert sum(node.said().count(", cpu, 3 processes") for node in nodes) == 1
    assert main(fit_words(shared_data, tmp_path / "alone", *words)) == 0
    same_scores(tmp_path / "alone", tmp_path / "run")


def test_run_resumes_after_a_node_was_killed(shared_data: Path, tmp_path: Path) -> None:
    run, words = tmp_path / "run", ["--epochs", "6", "--batch-size", "3"]
    with launched(tmp_path, "static", fit_words(shared_data, run, *words)) as nodes:
        limit = time.monotonic() + 120
        while not (run / "log.jsonl").exists() or not (run / "log.jsonl").read_text().count("\n"):
            assert time.monotonic() < limit, [node.said() for node in nodes]
            time.sleep(0.01)
        nodes[1].kill()
        assert nodes[0].wait(120) != 0
    assert "all processes of a run must stay alive" in nodes[0].said()
    assert (run / "checkpoint.safetensors").exists()
    log = losses(run)
    assert not (run / "model.safetensors").exists()
    shutil.copytree(run, tmp_path / "one")
    for place, more in (("run", ["--resume"]), ("whole", [])):
        with launched(tmp_path, "static", [*fit_words(shared_data, tmp_path / place, *words), *more]) as nodes:
            assert [node.wait() for node in nodes] == [0, 0], [node.said() for node in nodes]
    same_scores(tmp_path / "whole", run)
    assert main([*fit_words(shared_data, tmp_path / "one", *words), "--resume"]) == 0  # in one process
    # Rounding errors grow with each step, so the first resumed epoch is compared.
    before = len(log)
    one, whole = losses(tmp_path / "one"), losses(tmp_path / "whole")
    assert one[: before + 1] == pytest.approx(whole[: before + 1], rel=2e-3)
    assert len(one) == len(whole) == 6


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
