"""Measurement of the missing cells of a study: jobs, their failures, and the loop over their outcomes."""

import signal
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from semflow.errors import SemflowError

from .progress import Progress
from .record import provenance, write
from .runner import Outcome, attempt
from .store import CellStore, Key

__all__ = ["Execute", "Failure", "Job", "Work", "measure_cells", "run_command", "run_jobs"]


class CellLike(Protocol):
    """A cell that can be measured: its key, the settings it is compared by, and its relative cost."""

    @property
    def key(self) -> Key: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def cost(self) -> float: ...


C = TypeVar("C", bound=CellLike)


@dataclass(frozen=True)
class Job(Generic[C]):
    """Cells that one process measures, and the file that it appends them to."""

    cells: tuple[C, ...]
    store: str
    command: tuple[str, ...]
    device: str = "cpu"
    threads: int | None = None


class Failure(NamedTuple):
    """A cell without a result, and the error."""

    key: Key
    error: str
    traceback: str


Work = Callable[[Job[Any]], Sequence[Failure]]
Execute = Callable[..., Generator[Outcome[Job[Any]], None, None]]


def measure_cells(
    job: Job[C], measure: Callable[[C], Mapping[str, Any]], packages: Sequence[str] = ()
) -> list[Failure]:
    """Measure the cells of a job, append each to the store, and return the failures."""
    record, failures = provenance(job.command, job.device, packages), []

    def keep(cell: C) -> None:
        CellStore(job.store).append(cell.key, cell.settings, measure(cell), record)

    for cell in job.cells:
        _, error, traceback = attempt(keep, cell)
        if error:
            failures.append(Failure(cell.key, error, traceback))
    return failures


def run_jobs(
    jobs: Sequence[Job[Any]],
    work: Work,
    execute: Execute,
    store: CellStore,
    output: Path,
    update: Callable[[], object],
    *,
    done: int = 0,
    at_a_time: int | None = 1,
    threads: int | None = None,
) -> list[str]:
    """Run jobs and show progress; return one line for each cell that failed.

    Args:
        jobs: with the missing cells.
        work: measures the cells of a job, in its process.
        execute: gives the jobs to processes, such as `run_all`.
        store: the file that the jobs append to.
        output: tracebacks are written to its folder `failures`.
        update: called after each job, to rewrite the report.
        done: number of cells that were finished before.
        at_a_time: number of processes.
        threads: of each process.
    """
    cells = [cell for job in jobs for cell in job.cells]
    failures = []
    with (
        Progress(done + len(cells), done, sum(cell.cost for cell in cells)) as display,
        closing(execute(jobs, work, at_a_time, threads)) as outcomes,
    ):
        for outcome in outcomes:
            failed = {failure.key: failure for failure in outcome.result or ()}
            for cell in outcome.job.cells:
                kept = store.find(cell.key, cell.settings)
                failure = failed.get(cell.key) or Failure(cell.key, outcome.error, outcome.traceback)
                error = (
                    "" if kept else failure.error or f"{store.path} does not have the cell; all machines must share it"
                )
                seconds = outcome.seconds / len(outcome.job.cells)
                display.cell(str(cell.key), seconds, cell.cost, kept["result"]["metrics"] if kept else {}, error)
                if error:
                    failures.append(f"{cell.key}: {error}")
                    name = "".join(c if c.isalnum() else "-" for c in str(cell.key))
                    write(output / "failures" / f"{name}.txt", f"{cell}\n\n{error}\n\n{failure.traceback}")
            update()
    return failures


def run_command(main: Callable[[], int]) -> int:
    """Run a command and return its exit code: 2 after an error of semflow, 130 after an interrupt or SIGTERM."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return main()
    except SemflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; finished cells are kept, and the same command continues from there", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
