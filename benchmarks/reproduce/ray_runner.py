"""Jobs as Ray tasks: as many at a time as the machines can run, with the same outcomes as `run_all`."""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from semflow.app.scale.cluster import connected, resources
from semflow.errors import ConfigError

from ..shared.runner import THREADS, Outcome, attempt

J = TypeVar("J")
AHEAD = 1000
"""Number of tasks given to Ray at a time if `at_a_time` is None."""


def run_on_ray(
    jobs: Sequence[J],
    work: Callable[[J], Any],
    at_a_time: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
) -> Generator[Outcome[J], None, None]:
    """Run jobs on the cluster of RAY_ADDRESS or on this machine, and yield each outcome when it is ready.

    Each job has its own worker process in the current folder, which must exist on all machines. No job is repeated.
    Closing the generator cancels the tasks, and so does the end of this process.

    Args:
        jobs: picklable.
        work: a function of a module, called with a job.
        at_a_time: largest number of tasks; None is limited by the resources only.
        threads: of each task, and its number of CPUs; None is 1.
        device: with `cuda` each task takes a GPU, with `auto` if the cluster has any.
    """
    if device.partition(":")[0] not in ("auto", "cpu") and device != "cuda":
        raise ConfigError(f"--device must be auto, cpu or cuda with ray, but got {device}; Ray chooses the GPU")
    with connected(threads or 1) as ray:
        gpus = int(device == "cuda" or (device == "auto" and resources(ray)[1] >= 1))
        _check_resources(ray, threads or 1, gpus)
        # One call per process: each task has its own memory, threads and random states. No retries: failures are shown.
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
    except ray.exceptions.RayTaskError as error:  # before the job began, for example if its module cannot be imported
        reason = str(error).strip().splitlines()[-1]
        return outcome(time.perf_counter() - began, None, reason, str(error))
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:300]
        return outcome(time.perf_counter() - began, None, f"the process died ({type(error).__name__}: {reason})")


def _check_resources(ray: Any, cpus: int, gpus: int) -> None:
    """Raise ConfigError for a task that Ray would never start."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(has.get("CPU", 0) >= cpus and has.get("GPU", 0) >= gpus for has in machines):
        most = " or ".join(f"{has.get('CPU', 0):g} and {has.get('GPU', 0):g}" for has in machines)
        raise ConfigError(
            f"--threads {cpus} and --device {'cuda' if gpus else 'cpu'} must be within one machine's CPUs and GPUs, "
            f"but got machines with {most}; use fewer"
        )


def _task(work: Callable[[Any], Any], job: Any, folder: str, threads: int) -> tuple[float, Any, str, str]:
    """Return seconds, result, error and traceback as text: the driver may not be able to import the exception."""
    began = time.perf_counter()
    os.chdir(folder)
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    found = attempt(work, job)
    return (time.perf_counter() - began, *found)
