"""Jobs in processes of their own, several at a time; one that fails or dies does not take the others with it."""

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

__all__ = ["Outcome", "run_all"]

J = TypeVar("J")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Outcome(Generic[J]):
    """What became of a job: its result, or in one line why there is none, with the traceback."""

    job: J
    seconds: float
    result: Any = None
    error: str = ""
    traceback: str = ""


def run_all(
    jobs: Sequence[J], work: Callable[[J], Any], at_a_time: int = 1, threads: int | None = None
) -> Generator[Outcome[J], None, None]:
    """Do jobs in the order given; outcomes come as they are ready.

    Each job has a fresh (spawned) process, so that memory, threads and random states are its own. Whatever ends this
    generator, an interrupt included, ends the processes.

    Args:
        jobs: picklable.
        work: a function of a module, called with a job.
        at_a_time: processes.
        threads: of each process; None leaves what the environment says.
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
                there.close()  # so that the end of the process is the end of the pipe
                running[here] = (job, process, time.perf_counter())
            for ready in wait(list(running)):
                connection = next(c for c in running if c is ready)
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


def _receive(connection: Connection, job: J, process: Any, seconds: float) -> Outcome[J]:
    try:
        result, error, trace = connection.recv()
    except EOFError:
        process.join()
        code = process.exitcode
        died = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        result, error, trace = None, f"its process died ({died}); is there memory enough for --jobs?", ""
    finally:
        connection.close()
    process.join()
    return Outcome(job, seconds, result, error, trace)


def _child(connection: Connection, work: Callable[[Any], Any], job: Any) -> None:
    # Ctrl-C reaches the whole group of processes: the parent decides, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        message = (work(job), "", "")
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        message = (None, f"{type(error).__name__}: {text}", traceback.format_exc())
    connection.send(message)
    connection.close()


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Environment variables that a starting process takes its number of threads from."""
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
