"""Jobs as tasks of Ray: as many at a time as the machines have room for, with the same outcomes as processes give."""

import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from semflow.app.scale.cluster import connected, resources
from semflow.errors import ConfigError

from ..shared.runner import THREADS, Outcome

__all__ = ["run_on_ray"]

J = TypeVar("J")
AHEAD = 1000
"""Tasks that are handed to Ray before the first has ended, where no number at a time is given."""


def run_on_ray(
    jobs: Sequence[J],
    work: Callable[[J], Any],
    at_a_time: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
) -> Generator[Outcome[J], None, None]:
    """Do jobs on the cluster that RAY_ADDRESS names, or on this machine; outcomes come as they are ready.

    Each job has a worker process of its own, in this folder, which must be there on all machines. Nothing is tried
    twice. Whatever ends this generator ends the tasks, and so does the end of this process, however it comes.

    Args:
        jobs: picklable.
        work: a function of a module, called with a job.
        at_a_time: no more than so many tasks; None leaves it to the resources.
        threads: of each task, which takes as many CPUs; None is one.
        device: with `cuda` a task takes a GPU, with `auto` where there are any.

    Raises:
        ConfigError: no machine has what a task takes.
    """
    if device.partition(":")[0] not in ("auto", "cpu") and device != "cuda":
        raise ConfigError(f"--device {device}: expected auto, cpu or cuda with --engine ray, which chooses the GPU")
    with connected(threads or 1) as ray:
        gpus = int(device == "cuda" or (device == "auto" and resources(ray)[1] >= 1))
        _check_room(ray, threads or 1, gpus)
        # One call a process: memory, threads and random states are a task's own. A task that dies is told, not redone.
        task = ray.remote(num_cpus=threads or 1, num_gpus=gpus, max_calls=1, max_retries=0)(_task)
        waiting, running = deque(jobs), dict[Any, tuple[J, float]]()
        try:
            while waiting or running:
                while waiting and len(running) < (at_a_time or AHEAD):
                    job = waiting.popleft()
                    running[task.remote(work, job, str(Path.cwd()), threads or 1)] = (job, time.perf_counter())
                ready, _ = ray.wait(list(running), num_returns=1)
                job, began = running.pop(ready[0])
                yield _outcome(ray, ready[0], job, began)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _outcome(ray: Any, reference: Any, job: J, began: float) -> Outcome[J]:
    outcome = partial(Outcome, job)
    try:
        return outcome(*ray.get(reference))
    except ray.exceptions.RayTaskError as error:  # before the job began: its module is not there, say
        reason = str(error).strip().splitlines()[-1]
        return outcome(time.perf_counter() - began, None, reason, str(error))
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:300]
        return outcome(time.perf_counter() - began, None, f"its process died ({type(error).__name__}: {reason})")


def _check_room(ray: Any, cpus: int, gpus: int) -> None:
    """Refuse what Ray would wait for without end."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(has.get("CPU", 0) >= cpus and has.get("GPU", 0) >= gpus for has in machines):
        most = " or ".join(f"{has.get('CPU', 0):g} and {has.get('GPU', 0):g}" for has in machines)
        raise ConfigError(
            f"--threads {cpus} and --device {'cuda' if gpus else 'cpu'} take {cpus} CPUs and {gpus} GPUs of one "
            f"machine, but those of Ray have {most}; use fewer"
        )


def _task(work: Callable[[Any], Any], job: Any, folder: str, threads: int) -> tuple[float, Any, str, str]:
    """Seconds, result, error and traceback of a job: what it raises may not be importable where the outcome is read."""
    began = time.perf_counter()
    try:
        os.chdir(folder)
        os.environ.update(dict.fromkeys(THREADS, str(threads)))
        found = (work(job), "", "")
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        found = (None, f"{type(error).__name__}: {text}", traceback.format_exc())
    return (time.perf_counter() - began, *found)
