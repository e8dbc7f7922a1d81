"""Jobs in separate processes, several at a time; a job that fails or dies does not affect the others."""

import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

J = TypeVar("J")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Outcome(Generic[J]):
    """The result of a job, or its error in one line with the traceback."""

    job: J
    seconds: float
    result: Any = None
    error: str = ""
    traceback: str = ""


def run_all(
    jobs: Sequence[J], work: Callable[[J], Any], at_a_time: int = 1, threads: int | None = None
) -> Generator[Outcome[J], None, None]:
    """Run jobs in the order given and yield each outcome when it is ready.

    Each job has a new (spawned) process with its own memory, threads and random states. Closing the generator, also by
    an interrupt, terminates the processes.

    Args:
        jobs: picklable.
        work: a function of a module, called with a job.
        at_a_time: number of processes.
        threads: of each process; None keeps the environment's number.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque(jobs)
    running: dict[Connection, tuple[J, Any, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                job = waiting.popleft()
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(there, work, job), daemon=True)
                with _threads(threads):
                    process.start()
                there.close()  # so that the pipe ends with the process
                running[here] = (job, process, time.perf_counter())
            for connection in [c for c in wait(list(running)) if isinstance(c, Connection)]:
                job, process, began = running[connection]
                outcome = _receive(connection, job, process, time.perf_counter() - began)
                del running[connection]
                yield outcome
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.join(5)
            if process.is_alive():
                process.kill()


def attempt(work: Callable[[J], Any], job: J) -> tuple[Any, str, str]:
    """Return the result of a job, or its error in one line and the traceback."""
    try:
        return work(job), "", ""
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        return None, f"{type(error).__name__}: {text}", traceback.format_exc()


def _receive(connection: Connection, job: J, process: Any, seconds: float) -> Outcome[J]:
    try:
        result, error, trace = connection.recv()
    except EOFError:
        process.join()
        code = process.exitcode
        died = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        result, error, trace = None, f"the process died ({died}); check that there is enough memory for --jobs", ""
    finally:
        connection.close()
    process.join()
    return Outcome(job, seconds, result, error, trace)


def _child(connection: Connection, work: Callable[[Any], Any], job: Any) -> None:
    # Ctrl-C reaches the whole group of processes; the parent terminates this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection.send(attempt(work, job))
    connection.close()


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Set the environment variables from which a new process takes its number of threads."""
    if number is None:
        yield
        return
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, str(number)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
