"""A table whose command is killed by SIGKILL again and again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks.shared.store import CellStore

ROOT = Path(__file__).resolve().parents[2]
KILLS = 8


def start(mvtec: Path, output: Path) -> subprocess.Popen[bytes]:
    words = ["sanflow", "--data", str(mvtec), "--seeds", "0", "1", "--epochs", "1", "--backbone", "resnet18"]
    words += ["--weights", "random", "--image-size", "64", "--no-chart", "--threads", "1", "--output", str(output)]
    words += ["--set", "couplings.blocks=1", "couplings.position_channels=16", "backbone.strides=8,16"]
    command = [sys.executable, "-m", "benchmarks.reproduce", *words]
    with (output.parent / f"{output.name}.log").open("ab") as log:  # a pipe would stay open in its children
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def metrics(output: Path) -> dict[str, Any]:
    return {str(k): c["result"]["metrics"] for k, c in CellStore(output / "cells.jsonl").latest().items()}


@pytest.mark.slow
def test_killed_table_has_the_same_figures_when_it_is_repeated(
    mvtec: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    assert start(mvtec, whole).wait() == 0, (tmp_path / "whole.log").read_text()
    length = time.monotonic() - began
    draw, kills, starts = random.Random(0), 0, 0
    while kills < KILLS:
        starts += 1
        began = time.monotonic()
        process = start(mvtec, killed)
        try:
            process.wait(draw.uniform(0.1, 0.6) * length)
        except subprocess.TimeoutExpired:
            # Every second kill spares the process of the running cell, which then finishes beside the next command.
            (os.kill if kills % 2 else os.killpg)(process.pid, signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        if process.returncode == 0:  # all cells are finished: remove some, so that there is work to kill
            length = min(length, time.monotonic() - began)
            assert metrics(killed) == metrics(whole)
            lines = (killed / "cells.jsonl").read_text().splitlines(keepends=True)
            (killed / "cells.jsonl").write_text("".join(lines[starts % 2 :: 2]))
    assert start(mvtec, killed).wait() == 0, (tmp_path / "killed.log").read_text()
    assert len(metrics(killed)) == 4
    assert metrics(killed) == metrics(whole)
    rows = [json.loads((folder / "sanflow.json").read_text())["rows"] for folder in (whole, killed)]
    assert [row["metrics"] for row in rows[0]] == [row["metrics"] for row in rows[1]]
    record_property("kills", kills)
    record_property("cells", len(metrics(killed)))
