"""Measurement of the missing cells of a study: jobs, their failures, and the loop over their outcomes."""

import signal
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from semflow.errors import SemflowError

from .progress import Progress
from .record import provenance, write
from .runner import Outcome, attempt, run_all
from .store import CellStore, Key


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


def run_study(
    cells: Sequence[CellLike],
    store: CellStore,
    command: Sequence[str],
    output: Path,
    update: Callable[[], object],
    work: Work,
    execute: Execute = run_all,
    *,
    group: Callable[[Sequence[Any]], Iterable[Sequence[Any]]] | None = None,
    at_a_time: int | None = 1,
    device: str = "cpu",
    threads: int | None = None,
) -> int:
    """Measure the missing cells of a study, show progress and failures, and return the exit code.

    Args:
        cells: of the study.
        store: keeps finished cells.
        command: for the record of the cells.
        output: folder for `failures`, the tracebacks.
        update: rewrites the report; called after each job and at the end.
        work: measures the cells of a job, in its process.
        execute: gives the jobs to processes.
        group: the cells of each job; one cell by default.
        at_a_time: number of processes.
        device: of the cells.
        threads: of each process.
    """
    missing = [cell for cell in cells if store.find(cell.key, cell.settings) is None]
    groups = group(missing) if group else [[cell] for cell in missing]
    jobs = [Job(tuple(part), str(store.path), tuple(command), device, threads) for part in groups]
    failures = []
    with (
        Progress(len(cells), len(cells) - len(missing), sum(cell.cost for cell in missing)) as display,
        closing(execute(jobs, work, at_a_time, threads)) as outcomes,
    ):
        for outcome in outcomes:
            failed = {failure.key: failure for failure in outcome.result or ()}
            for cell in outcome.job.cells:
                kept = store.find(cell.key, cell.settings)
                failure = failed.get(cell.key) or Failure(cell.key, outcome.error, outcome.traceback)
                lost = f"{store.path} does not have the cell; all machines must share it"
                error = "" if kept else failure.error or lost
                seconds = outcome.seconds / len(outcome.job.cells)
                display.cell(str(cell.key), seconds, cell.cost, kept["result"]["metrics"] if kept else {}, error)
                if error:
                    failures.append(f"failed: {cell.key}: {error}")
                    name = "".join(c if c.isalnum() else "-" for c in str(cell.key))
                    write(output / "failures" / f"{name}.txt", f"{cell}\n\n{error}\n\n{failure.traceback}")
            update()
    update()
    for line in failures:
        print(line, file=sys.stderr)
    return 1 if failures else 0


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
