"""Jobs as tasks of Ray: the outcomes of processes, resources in place of a number, and a driver that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from benchmarks.reproduce import __main__ as reproduce
from benchmarks.reproduce.options import parse
from benchmarks.reproduce.ray_runner import run_on_ray
from benchmarks.shared.runner import run_all
from benchmarks.shared.store import CellStore

from helpers import spawned_work
from helpers.keeping import Kept
from helpers.ray_nodes import Nodes
from helpers.spawned_work import work
from semflow.app.scale import connected
from semflow.errors import ConfigError

pytest.importorskip("ray", reason="needs Ray, the extra ray")
ROOT = Path(__file__).resolve().parents[2]
# No statistics are sent, no cluster is used but the test's own, and its workers find the modules of the tests.
OFF = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ADDRESS": "",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(spawned_work.__file__).parents[1])]),
}


@pytest.fixture(scope="module")
def here() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in OFF.items():
            patch.setenv(name, value)
        with connected(2) as ray:
            yield ray


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_the_outcomes_are_those_of_processes(capfd: pytest.CaptureFixture[str]) -> None:
    jobs = [("give", "a"), ("raise", "b"), ("die", "c"), ("environment", "MKL_NUM_THREADS"), ("give", "e")]
    found = {o.job: o for o in run_on_ray(jobs, work, at_a_time=2, threads=1)}
    expected = {o.job: o for o in run_all(jobs, work, at_a_time=2, threads=1)}
    assert set(found) == set(jobs)
    for job in jobs:
        assert found[job].result == expected[job].result, job
        assert bool(found[job].error) == bool(expected[job].error), job
    assert found[jobs[1]].error == expected[jobs[1]].error == "ValueError: cannot do b in two lines"
    assert "spawned_work.py" in found[jobs[1]].traceback
    assert found[jobs[2]].error.startswith("its process died (WorkerCrashedError: ")
    assert "\n" not in found[jobs[2]].error


@pytest.mark.slow
def test_the_number_at_a_time_is_what_there_is_room_for(here: Any, tmp_path: Path) -> None:
    """Of three tasks of all CPUs one runs at a time; the end of the generator ends it, and takes the others back."""
    cpus = int(here.cluster_resources()["CPU"])
    marks = [tmp_path / name for name in "abc"]
    outcomes = run_on_ray([("give", "x"), *(("sleep", str(mark)) for mark in marks)], work, threads=cpus)
    with closing(outcomes):
        assert next(outcomes).result == "x"
        began = time.monotonic()
        while not any(mark.exists() and mark.read_text() for mark in marks):
            assert time.monotonic() - began < 120
            time.sleep(0.05)
        time.sleep(1)
        assert sum(mark.exists() for mark in marks) == 1
        assert here.available_resources().get("CPU", 0) == 0
    pid = int(next(mark for mark in marks if mark.exists()).read_text())
    began = time.monotonic()
    while (Path("/proc") / str(pid)).exists():
        assert time.monotonic() - began < 60
        time.sleep(0.05)
    assert sum(mark.exists() for mark in marks) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threads": 1000}, "take 1000 CPUs and 0 GPUs of one machine, but those of Ray have"),
        ({"device": "cuda"}, "--device cuda take 1 CPUs and 1 GPUs of one machine"),
        ({"device": "cuda:1"}, "--device cuda:1: expected auto, cpu or cuda"),
    ],
)
def test_what_ray_would_wait_for_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        next(run_on_ray([("give", "a")], work, **options))


def test_jobs_default_to_one_process_and_to_all_that_ray_has() -> None:
    assert parse(["table5"]).jobs == 1
    assert parse(["table5", "--engine", "ray"]).jobs is None
    assert parse(["table5", "--engine", "ray", "--jobs", "3"]).jobs == 3
    assert reproduce._engine(parse(["table5"])) is run_all
    chosen: Any = reproduce._engine(parse(["table5", "--engine", "ray", "--device", "cuda"]))
    assert (chosen.func, chosen.keywords) == (run_on_ray, {"device": "cuda"})


def words(mvtec: Path, output: Path) -> list[str]:
    found = ["sanflow", "--data", str(mvtec), "--epochs", "3", "--seeds", "0", "1", "--no-chart", "--engine", "ray"]
    found += ["--backbone", "resnet18", "--weights", "random", "--image-size", "64", "--threads", "1"]
    return [*found, "--set", "blocks=1", "position_channels=16", "strides=8,16", "--output", str(output)]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs addresses and processes of Linux")
def test_cells_are_spread_over_nodes_and_the_same_as_those_of_processes(mvtec: Path, tmp_path: Path) -> None:
    """Two nodes of one CPU: a cell takes one, so each node has a cell of its own at a time."""

    def figures(output: Path) -> dict[str, Any]:
        cells = [json.loads(path.read_text()) for path in (output / "cells").glob("[!.]*.json")]
        return {json.dumps(cell["config"], sort_keys=True): cell["result"]["metrics"] for cell in cells}

    with Nodes(tmp_path, [ROOT, Path(spawned_work.__file__).parents[1]]) as nodes:
        nodes.add(1)
        nodes.add(1)
        command = [sys.executable, "-m", "benchmarks.reproduce", *words(mvtec, tmp_path / "ray")]
        with Kept(command, tmp_path / "command.txt", nodes.environment) as driver:
            assert driver.wait(600) == 0, driver.said()
    alone = ["processes" if word == "ray" else word for word in words(mvtec, tmp_path / "alone")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.reproduce", *alone], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ray, processes = figures(tmp_path / "ray"), figures(tmp_path / "alone")
    assert len(ray) == 4
    assert ray.keys() == processes.keys()
    for name, metrics in ray.items():
        assert metrics == pytest.approx(processes[name], rel=1e-6)


@pytest.mark.slow
def test_a_killed_driver_that_starts_again_does_what_is_missing(
    mvtec: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Four cells that are really trained; SIGKILL for the command when the first is there."""
    command = [sys.executable, "-m", "benchmarks.reproduce", *words(mvtec, tmp_path / "out")]
    environment = {**os.environ, **OFF}
    cells = tmp_path / "out" / "cells"

    def kept() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in cells.glob("[!.]*.json")}

    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while process.poll() is None and not kept():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stdout and process.stdout.read().decode()
    time.sleep(3)  # what ran ends by itself
    before = kept()
    record_property("cells", len(before))
    assert 1 <= len(before) < 4
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    after = kept()
    assert len(after) == 4
    assert before.items() <= after.items()
    assert (tmp_path / "out" / "sanflow.md").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_the_command_makes_the_cells_of_processes(mvtec: Path, tmp_path: Path) -> None:
    """The same metrics, whoever gives the cells to processes."""
    one = [*words(mvtec, tmp_path / "ray"), "--seeds", "0", "--categories", "screw"]
    assert reproduce.main(one) == 0
    other = [*one, "--engine", "processes", "--output", str(tmp_path / "processes")]
    assert reproduce.main(other) == 0
    (name,) = (path.name for path in (tmp_path / "ray" / "cells").glob("*.json"))
    found = [json.loads((tmp_path / kind / "cells" / name).read_text()) for kind in ("ray", "processes")]
    assert found[0]["config"] == found[1]["config"]
    assert found[0]["result"]["metrics"] == pytest.approx(found[1]["result"]["metrics"], abs=1e-6)
    assert found[0]["result"]["threads"] == 1
    assert CellStore(tmp_path / "ray" / "cells", notice=pytest.fail).get(found[0]["config"]) is not None
