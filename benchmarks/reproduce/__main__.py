"""Reproduce a table of the paper: `python -m benchmarks.reproduce --help`."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from semflow.errors import ConfigError, SemflowError

from ..shared.progress import Progress, duration
from ..shared.runner import Outcome, run_all
from ..shared.store import CellStore
from .cells import Job, perform
from .options import parse
from .tables import TABLES, table

__all__ = ["main", "run"]

Work = Callable[[Job], Any]
Execute = Callable[..., Generator[Outcome[Job], None, None]]


def main(words: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    command = ("python", "-m", "benchmarks.reproduce", *(sys.argv[1:] if words is None else words))
    options = parse(words)
    try:
        return run(options, command)
    except SemflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; finished cells are kept, the same command goes on from there", file=sys.stderr)
        return 130


def run(
    options: argparse.Namespace, command: Sequence[str], work: Work = perform, execute: Execute | None = None
) -> int:
    """Do what the options say; the exit code.

    Args:
        options: of `parse`.
        command: for the record.
        work: what makes and keeps a cell.
        execute: what gives the jobs to it; None is what --engine says.
    """
    if options.table is None:
        if not options.list:
            raise ConfigError(f"TABLE must be one of {', '.join(TABLES)}, but is not given")
        print("\n".join(f"{name:8}  {text}" for name, text in TABLES.items()))
        return 0
    from .planning import choose_rows, plan

    chosen = table(options.table)
    rows = choose_rows(chosen, options)
    if options.list:
        print(chosen.title)
        for row in rows:
            arguments = " ".join(f"{name}={value}" for name, value in row.arguments.items())
            print(f"  {row.name:24}  {'control: ' * row.control}{row.text}: {row.recipe} {arguments}".rstrip())
        if options.data is None:
            return 0
    if not (options.no_chart or options.list or options.dry_run):
        from ..shared.plots import require_matplotlib

        require_matplotlib(", or give --no-chart")
    cells = plan(chosen, rows, options)
    store = CellStore(options.cells, notice=lambda line: print(line, file=sys.stderr))
    for c in cells:
        c.kept = store.get(c.cell.config())
    if options.list or options.dry_run:
        _show(cells, options)
        return 0
    engine = execute or _engine(options)
    failures = [] if options.report else _work(cells, store, options, command, work, engine, chosen, rows)
    _write(chosen, rows, cells, options, command, chart=not options.no_chart)
    print(f"wrote {options.output / options.table}.md")
    for outcome in failures:
        print(f"failed: {outcome.error}", file=sys.stderr)
    return 1 if failures else 0


def _engine(options: argparse.Namespace) -> Execute:
    """What gives the jobs to processes of their own, here or on all machines of a cluster."""
    if options.engine == "processes":
        return run_all
    from .ray_runner import run_on_ray

    return partial(run_on_ray, device=options.device)


def _work(
    cells: list[Any],
    store: CellStore,
    options: argparse.Namespace,
    command: Sequence[str],
    work: Work,
    execute: Execute,
    chosen: Any,
    rows: Sequence[Any],
) -> list[Outcome[Job]]:
    """Make the cells that are missing, each once, though rows may share it."""
    missing: dict[Path, list[Any]] = {}
    for c in cells:
        if c.kept is None:
            missing.setdefault(store.path(c.cell.config()), []).append(c)
    jobs = {
        path: Job(same[0].cell, str(store.folder), tuple(command), options.device, options.threads)
        for path, same in missing.items()
    }
    costs = {path: float(job.cell.fit.get("epochs") or 80) for path, job in jobs.items()}
    failures = []
    outcomes = execute(list(jobs.values()), work, options.jobs, options.threads)
    display = Progress(len(cells), sum(c.kept is not None for c in cells), sum(costs.values()))
    with display, closing(outcomes):
        for outcome in outcomes:
            path = store.path(outcome.job.cell.config())
            kept = None if outcome.error else store.get(outcome.job.cell.config())
            error = outcome.error or ("" if kept else f"the cell is not in {store.folder}; all machines must share it")
            for c in missing[path]:
                c.kept = kept
            names = " = ".join(dict.fromkeys(c.row.name for c in missing[path]))
            metrics = kept["result"]["metrics"] if kept else None
            label = f"{names}, {outcome.job.cell.data.category}, seed {outcome.job.cell.seed}"
            display.cell(label, len(missing[path]), outcome.seconds, costs[path], metrics, error)
            if error:
                failures.append(replace(outcome, error=f"{label}: {error}"))
                _keep_traceback(options.output, path.stem, outcome)
            else:
                _write(chosen, rows, cells, options, command, chart=False)
    return failures


def _keep_traceback(output: Path, name: str, outcome: Outcome[Job]) -> None:
    from semflow.files import write_atomic

    write_atomic(
        output / "failures" / f"{name}.txt", f"{outcome.job.cell.config()}\n\n{outcome.error}\n\n{outcome.traceback}"
    )


def _write(
    chosen: Any, rows: Sequence[Any], cells: list[Any], options: argparse.Namespace, command: Sequence[str], chart: bool
) -> None:
    from semflow.files import write_atomic

    from .markdown import to_markdown
    from .report import report

    summary = report(chosen, rows, cells, options, command)
    base = options.output / options.table
    write_atomic(base.with_suffix(".json"), json.dumps(summary, indent=2) + "\n")
    write_atomic(base.with_suffix(".md"), to_markdown(summary))
    if chart:
        from .chart import draw

        draw(summary, base)


def _show(cells: list[Any], options: argparse.Namespace) -> None:
    """The cells, which are done and, for a dry run, how long the others may take."""
    for c in cells:
        print(f"  {'done' if c.kept else '-':4}  {c.row.name:24}  {c.cell.data.category}, seed {c.cell.seed}")
    distinct = {json.dumps(c.cell.config(), sort_keys=True): c for c in cells}
    done = sum(c.kept is not None for c in distinct.values())
    print(f"{len(distinct)} cells, {done} of them done")
    if options.dry_run and done < len(distinct):
        from .estimate import estimate

        seconds = estimate(list(distinct.values()), options.device, options.threads)
        if seconds:
            jobs = options.jobs or 1
            total, longest = duration(sum(seconds) / jobs), duration(max(seconds))
            print(f"about {total} with {jobs} at a time, from a short probe; the longest cell about {longest}")
        if len(seconds) < len(distinct) - done:
            print(f"and {len(distinct) - done - len(seconds)} cells of peers, which are not estimated")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends like an interrupt
    sys.exit(main())
