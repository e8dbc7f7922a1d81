"""Command line of the paper's tables: `python -m benchmarks.reproduce --help`."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from semflow.errors import ConfigError

from ..shared.progress import duration
from ..shared.record import write, write_json
from ..shared.runner import run_all
from ..shared.store import CellStore
from ..shared.study import Execute, Work, run_command, run_study
from .options import parse
from .tables import TABLES, table


def main(words: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    command = ("python", "-m", "benchmarks.reproduce", *(sys.argv[1:] if words is None else words))
    options = parse(words)
    return run_command(lambda: run(options, command))


def run(
    options: argparse.Namespace, command: Sequence[str], work: Work | None = None, execute: Execute | None = None
) -> int:
    """Run parsed options and return the exit code.

    Args:
        options: of `parse`.
        command: for the record.
        work: measures the cells of a job; `cells.perform` by default.
        execute: gives the jobs to processes; `--engine` chooses it by default.
    """
    if options.table is None:
        if not options.list:
            raise ConfigError(f"TABLE must be one of {', '.join(TABLES)}, but got none")
        print("\n".join(f"{name:8}  {text}" for name, text in TABLES.items()))
        return 0
    from .cells import perform
    from .markdown import to_markdown
    from .planning import choose_rows, kept_cells, plan
    from .report import report

    chosen, base = table(options.table), options.output / options.table
    rows = choose_rows(chosen, options)
    if options.list:
        print(chosen.title)
        for row in rows:
            settings = " ".join(f"{name}={value}" for name, value in row.settings.items())
            print(f"  {row.name:24}  {'control: ' * row.control}{row.text}: {row.recipe} {settings}".rstrip())
        if options.data is None:
            return 0
    if not (options.no_chart or options.list or options.dry_run):
        from ..shared.plots import require_matplotlib

        require_matplotlib(", or give --no-chart")
    store = CellStore(options.cells, notice=lambda line: print(line, file=sys.stderr))
    cells = kept_cells(rows, options, store) if options.report else plan(chosen, rows, options, store)
    rows = [row for row in rows if any(c.row == row for c in cells)]
    if options.list or options.dry_run:
        _show(cells, options)
        return 0

    def update() -> dict[str, Any]:
        for c in cells:
            c.kept = store.find(c.key, c.cell.settings) if c.cell else c.kept
        summary = report(chosen, rows, cells, options, command)
        write_json(base.with_suffix(".json"), summary)
        write(base.with_suffix(".md"), to_markdown(summary))
        return summary

    code = run_study(
        *([c.cell for c in cells if c.cell], store, command, options.output, update),
        *(work or perform, execute or _engine(options)),
        at_a_time=options.jobs,
        device=options.device,
        threads=options.threads,
    )
    if not options.no_chart:
        from .chart import draw

        draw(update(), base)
    print(f"wrote {base}.md")
    return code


def _engine(options: argparse.Namespace) -> Execute:
    """Return the function that gives jobs to processes of this machine or of a cluster."""
    if options.engine == "processes":
        return run_all
    from .ray_runner import run_on_ray

    return partial(run_on_ray, device=options.device)


def _show(cells: list[Any], options: argparse.Namespace) -> None:
    """Print the cells and, for a dry run, how long the missing ones may take."""
    for c in cells:
        print(f"  {'done' if c.kept else '-':4}  {c.row.name:24}  {c.key.category}, seed {c.key.seed}")
    missing = sum(c.kept is None for c in cells)
    print(f"{len(cells)} cells, {len(cells) - missing} of them done")
    if options.dry_run and missing:
        from .estimate import estimate

        seconds = estimate(cells, options.device, options.threads)
        if seconds:
            jobs = options.jobs or 1
            total, longest = duration(sum(seconds) / jobs), duration(max(seconds))
            print(f"about {total} with {jobs} at a time, by a short probe; the longest cell about {longest}")
        if len(seconds) < missing:
            print(f"and {missing - len(seconds)} cells of methods without training, which are not estimated")


if __name__ == "__main__":
    sys.exit(main())
