"""Jobs as Ray tasks."""

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
from benchmarks.shared.store import CellStore, Key

from helpers import spawned_work
from helpers.keeping import Kept
from helpers.ray_nodes import Nodes
from helpers.spawned_work import work
from semflow.app.scale import connected
from semflow.errors import ConfigError

pytest.importorskip("ray", reason="needs Ray, the extra ray")
ROOT = Path(__file__).resolve().parents[2]
# Send no statistics, use no other cluster, and let workers import the modules of the tests.
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
def test_outcomes_equal_those_of_processes(capfd: pytest.CaptureFixture[str]) -> None:
    jobs = [("give", "a"), ("raise", "b"), ("die", "c"), ("environment", "MKL_NUM_THREADS"), ("give", "e")]
    found = {o.job: o for o in run_on_ray(jobs, work, at_a_time=2, threads=1)}
    expected = {o.job: o for o in run_all(jobs, work, at_a_time=2, threads=1)}
    assert set(found) == set(jobs)
    for job in jobs:
        assert found[job].result == expected[job].result, job
        assert bool(found[job].error) == bool(expected[job].error), job
    assert found[jobs[1]].error == expected[jobs[1]].error == "ValueError: cannot do b in two lines"
    assert "spawned_work.py" in found[jobs[1]].traceback
    assert found[jobs[2]].error.startswith("the process died (WorkerCrashedError: ")
    assert "\n" not in found[jobs[2]].error


@pytest.mark.slow
def test_number_of_tasks_is_limited_by_the_cpus(here: Any, tmp_path: Path) -> None:
    """Each task takes all CPUs, so one of three runs at a time; closing the generator cancels the others."""
    cpus = int(here.cluster_resources()["CPU"])
    started = [tmp_path / name for name in "abc"]
    outcomes = run_on_ray([("give", "x"), *(("sleep", str(path)) for path in started)], work, threads=cpus)
    with closing(outcomes):
        assert next(outcomes).result == "x"
        wait_until(lambda: any(path.exists() and path.read_text() for path in started))
        assert here.available_resources().get("CPU", 0) == 0
        assert sum(path.exists() for path in started) == 1
    pid = int(next(path for path in started if path.exists()).read_text())
    wait_until(lambda: not (Path("/proc") / str(pid)).exists())
    assert sum(path.exists() for path in started) == 1


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 1000}, "--threads 1000 and --device cpu must be within one machine's CPUs and GPUs, but got"),
        ({"device": "cuda"}, "--threads 1 and --device cuda must be within one machine's CPUs and GPUs, but got"),
        ({"device": "cuda:1"}, "--device must be auto, cpu or cuda with ray, but got cuda:1"),
    ],
)
def test_impossible_resources_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        next(run_on_ray([("give", "a")], work, **options))


def test_jobs_default_to_one_process_or_to_all_resources_of_ray() -> None:
    assert parse(["table5"]).jobs == 1
    assert parse(["table5", "--engine", "ray"]).jobs is None
    assert parse(["table5", "--engine", "ray", "--jobs", "3"]).jobs == 3
    assert reproduce._engine(parse(["table5"])) is run_all
    chosen: Any = reproduce._engine(parse(["table5", "--engine", "ray", "--device", "cuda"]))
    assert (chosen.func, chosen.keywords) == (run_on_ray, {"device": "cuda"})


def words(mvtec: Path, output: Path) -> list[str]:
    found = ["sanflow", "--data", str(mvtec), "--epochs", "3", "--seeds", "0", "1", "--no-chart", "--engine", "ray"]
    found += ["--backbone", "resnet18", "--weights", "random", "--image-size", "64", "--threads", "1"]
    settings = ["couplings.blocks=1", "couplings.position_channels=16", "backbone.strides=8,16"]
    return [*found, "--set", *settings, "--output", str(output)]


def metrics(output: Path) -> dict[Key, dict[str, float]]:
    return {key: cell["result"]["metrics"] for key, cell in CellStore(output / "cells.jsonl").latest().items()}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs addresses and processes of Linux")
def test_cells_of_two_nodes_equal_those_of_processes(mvtec: Path, tmp_path: Path) -> None:
    """Each of the two nodes has one CPU, and a cell takes one, so both nodes run cells."""
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
    ray, processes = metrics(tmp_path / "ray"), metrics(tmp_path / "alone")
    assert len(ray) == 4
    assert ray.keys() == processes.keys()
    for key, found in ray.items():
        assert found == pytest.approx(processes[key], rel=1e-6)


@pytest.mark.slow
def test_killed_driver_measures_only_missing_cells_when_repeated(
    mvtec: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """SIGKILL stops the command when the first of four cells is finished."""
    command = [sys.executable, "-m", "benchmarks.reproduce", *words(mvtec, tmp_path / "out")]
    environment = {**os.environ, **OFF}
    cells = tmp_path / "out" / "cells.jsonl"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    wait_until(lambda: process.poll() is not None or cells.exists(), 600)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    record_property("cells", len(metrics(tmp_path / "out")))
    assert 1 <= len(metrics(tmp_path / "out")) < 4
    first = cells.read_text().splitlines()[0]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert len(metrics(tmp_path / "out")) == 4
    assert cells.read_text().splitlines()[0] == first
    assert (tmp_path / "out" / "sanflow.md").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_command_gives_the_same_cell_with_ray_and_with_processes(mvtec: Path, tmp_path: Path) -> None:
    one = [*words(mvtec, tmp_path / "ray"), "--seeds", "0", "--categories", "screw"]
    assert reproduce.main(one) == 0
    other = [*one, "--engine", "processes", "--output", str(tmp_path / "processes")]
    assert reproduce.main(other) == 0
    (ray,), (processes,) = (
        CellStore(tmp_path / kind / "cells.jsonl").latest().values() for kind in ("ray", "processes")
    )
    assert ray["settings"] == processes["settings"]
    assert ray["result"]["metrics"] == pytest.approx(processes["result"]["metrics"], abs=1e-6)
    assert ray["result"]["threads"] == 1
