"""A table whose command is killed by SIGKILL again and again has each cell once, with the figures of a calm run."""

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

ROOT = Path(__file__).resolve().parents[2]
KILLS = 8


def start(mvtec: Path, output: Path) -> subprocess.Popen[bytes]:
    words = ["sanflow", "--data", str(mvtec), "--seeds", "0", "1", "--epochs", "1", "--backbone", "resnet18"]
    words += ["--weights", "random", "--image-size", "64", "--no-chart", "--threads", "1", "--output", str(output)]
    words += ["--set", "blocks=1", "position_channels=16", "strides=8,16"]
    command = [sys.executable, "-m", "benchmarks.reproduce", *words]
    with (output.parent / f"{output.name}.log").open("ab") as log:  # no pipe: its children would hold it
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def finished(cells: Path) -> dict[str, dict[str, Any]]:
    """What is measured in each file of the store, all of which must be whole."""
    found = {path.name: json.loads(path.read_text()) for path in cells.glob("[!.]*")}
    return {name: {"config": cell["config"], "metrics": cell["result"]["metrics"]} for name, cell in found.items()}


@pytest.mark.slow
def test_killed_at_any_moment_each_cell_is_there_once(
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
            # Every second one leaves the process of the cell alive: it ends by itself, beside the next command.
            (os.kill if kills % 2 else os.killpg)(process.pid, signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        if process.returncode == 0:  # all are there: some are taken away, so that there is something to be killed at
            length = min(length, time.monotonic() - began)  # the machine may have less to do than at first
            assert finished(killed / "cells") == finished(whole / "cells")
            for path in sorted((killed / "cells").glob("[!.]*"))[starts % 2 :: 2]:
                path.unlink()
        finished(killed / "cells")
    assert start(mvtec, killed).wait() == 0, (tmp_path / "killed.log").read_text()
    cells = finished(killed / "cells")
    assert len(cells) == 4
    assert cells == finished(whole / "cells")
    rows = [json.loads((folder / "sanflow.json").read_text())["rows"] for folder in (whole, killed)]
    assert [row["metrics"] for row in rows[0]] == [row["metrics"] for row in rows[1]]
    record_property("kills", kills)
    record_property("cells", len(cells))
