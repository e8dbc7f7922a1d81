"""What a retrofit gains: flows of other libraries, as they were and with predicted statistics: `--help`."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semflow.errors import ConfigError, SemflowError

from ..shared.datasets import Data, categories
from ..shared.progress import duration
from ..shared.runner import Outcome, run_all
from ..shared.store import CellStore

if TYPE_CHECKING:
    from .cells import RetrofitCell, RetrofitJob

__all__ = ["main", "parse", "run"]

DESCRIPTION = """What statistics prediction adds to the flows that people have.

For each library a small flow as its user writes it, one a scale, on frozen features, trained from the same seed for the
same steps

    own        as it was: on the library's standard normal, by its log_prob
    learned    retrofitted with one learned variance a scale: the control
    predicted  retrofitted by as_flow and with_statistics(..., InverseGammaVariance)

Log-likelihood of normal test images, image AUROC, pixel AUROC and AUPRO of the model of the last step, without and,
where the flow has one for each location, with its log-det in the score.

    python -m benchmarks.retrofit --data mvtec --categories toothbrush screw --seeds 0 1 2 --jobs 2 --threads 1

Finished cells are kept: a run that was killed, repeated or extended does only what is missing. Written to --output:
retrofit.md, retrofit.json, and the cells.

Exit codes: 0 done, 1 a cell failed (the others are done), 2 a mistake in the command, 130 interrupted."""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Options out of words."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.retrofit", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, help="folder of the categories' folders, in the layout of MVTec AD")
    add("--categories", nargs="+", metavar="NAME", help="default: all there are")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    add(
        "--libraries",
        nargs="+",
        metavar="NAME",
        help="freia, anomalib, nflows, normflows, zuko, torch, callable; default: all installed",
    )
    add("--variants", nargs="+", metavar="NAME", help="own, learned, predicted; default: all")
    add("--backbone", default="tf_efficientnet_lite0", help="timm's name")
    add("--weights", default="packaged", help="packaged, hub, random or a file")
    add("--strides", nargs="+", type=int, default=[8, 16], metavar="N", help="of the feature maps; a flow for each")
    add("--image-size", type=int, default=256)
    add("--steps", type=int, default=150)
    add("--batch-size", type=int, default=4)
    add("--learning-rate", type=float, default=1e-3, help="of Adam, falling to zero along a cosine")
    add("--mode", type=float, default=1.0, help="the variance that retrofitted bases start from; 1 is the flow's own")
    add("--jobs", type=int, default=1, metavar="J", help="processes at a time, each with its own features")
    add("--threads", type=int, metavar="N", help="threads of each process")
    add("--output", type=Path, default=Path("runs/retrofit"), metavar="DIR")
    add("--cells", type=Path, metavar="DIR", help="where finished cells are kept; default: OUTPUT/cells")
    add("--report", action="store_true", help="write the report of the cells that there are")
    options = parser.parse_args(words)
    for name in ("jobs", "threads", "steps", "batch_size", "image_size", "learning_rate", "mode"):
        value = getattr(options, name)
        least = 0.0 if name in ("learning_rate", "mode") else 1
        if value is not None and (value < least or value == 0):
            parser.error(f"--{name.replace('_', '-')} must be {'above 0' if least == 0 else 'at least 1'}, got {value}")
    if len(set(options.seeds)) < len(options.seeds) or min(options.seeds) < 0:
        parser.error(f"--seeds must be different whole numbers from 0 on, but got {options.seeds}")
    options.cells = options.cells or options.output / "cells"
    return options


def main(words: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    command = ("python", "-m", "benchmarks.retrofit", *(sys.argv[1:] if words is None else words))
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
    options: argparse.Namespace,
    command: Sequence[str],
    work: Callable[..., Any] | None = None,
    execute: Callable[..., Generator[Outcome[Any], None, None]] = run_all,
) -> int:
    """Do what the options say; the exit code.

    Args:
        options: of `parse`.
        command: for the record.
        work: what makes and keeps the cells of a job; `cells.perform`.
        execute: what gives the jobs to it, `run_all` in processes of their own.
    """
    from .cells import perform
    from .flows import LIBRARIES

    cells = plan(options)
    store = CellStore(options.cells, notice=lambda line: print(line, file=sys.stderr))
    missing = [cell for cell in cells if store.get(cell.config()) is None]
    print(f"{len(cells)} cells, {len(cells) - len(missing)} of them done", file=sys.stderr)
    absent = [name for name, library in LIBRARIES.items() if not library.installed]
    if absent and not options.libraries:
        print(f"not installed, and left out: {', '.join(absent)}", file=sys.stderr)
    failures = []
    with closing(
        execute(
            [] if options.report else jobs(missing, options, command), work or perform, options.jobs, options.threads
        )
    ) as outcomes:
        for outcome in outcomes:
            failed = {f.cell: f.error for f in outcome.result or ()}
            for cell in outcome.job.cells:
                error = outcome.error or failed.get(cell) or ("" if store.get(cell.config()) else "was not kept")
                failures += [f"{cell.label}: {error}"] if error else []
            keep_tracebacks(options.output, outcome)
            done = sum(store.get(cell.config()) is not None for cell in cells)
            category = outcome.job.cells[0].data.category
            print(f"[{done}/{len(cells)}] {category} ({duration(outcome.seconds)})", file=sys.stderr)
            write(cells, store, options, command)
    write(cells, store, options, command)
    print(f"wrote {options.output / 'retrofit.md'}")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def plan(options: argparse.Namespace) -> list["RetrofitCell"]:
    """The cells of the options.

    Raises:
        ConfigError: no such library, variant or category, or a library is not installed.
        DataError: the data are not there.
    """
    from .cells import RetrofitCell, Setup
    from .flows import LIBRARIES
    from .model import VARIANTS

    libraries = chosen("libraries", options.libraries, list(LIBRARIES))
    if not options.libraries:
        libraries = [name for name in libraries if LIBRARIES[name].installed]
    variants: Any = chosen("variants", options.variants, list(VARIANTS))
    names = chosen("categories", options.categories, categories("mvtec", options.data))
    for library in libraries:
        LIBRARIES[library].require()
    setup = Setup(
        options.backbone,
        options.weights,
        tuple(options.strides),
        options.image_size,
        options.steps,
        options.batch_size,
        options.learning_rate,
        options.mode,
    )
    data = [Data("mvtec", options.data, name) for name in names]
    prints = {one: one.fingerprint() for one in data}
    return [
        RetrofitCell(library, variant, one, prints[one], seed, setup)
        for one in data
        for seed in options.seeds
        for library in libraries
        for variant in variants
    ]


def jobs(cells: Sequence["RetrofitCell"], options: argparse.Namespace, command: Sequence[str]) -> list["RetrofitJob"]:
    """The cells of each category together, since they share the features; parted by library if --jobs wants more."""
    from .cells import RetrofitJob

    names = list(dict.fromkeys(cell.data.category for cell in cells))
    libraries = list(dict.fromkeys(cell.library for cell in cells))
    parts = -(-options.jobs // max(1, len(names)))
    shared: dict[tuple[str, int], list[RetrofitCell]] = {}
    for cell in cells:
        shared.setdefault((cell.data.category, libraries.index(cell.library) % parts), []).append(cell)
    return [RetrofitJob(tuple(group), str(options.cells), tuple(command), options.threads) for group in shared.values()]


def chosen(option: str, given: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """What is given, or all."""
    for name in given or ():
        if name not in known:
            raise ConfigError(f"--{option} {name}: expected one of {', '.join(known)}")
    return list(dict.fromkeys(given or known))


def write(
    cells: Sequence["RetrofitCell"], store: CellStore, options: argparse.Namespace, command: Sequence[str]
) -> None:
    """The report of the cells that there are."""
    from semflow.files import write_atomic

    from .report import summarise, to_markdown

    summary = summarise([(cell, store.get(cell.config())) for cell in cells], command)
    base = options.output / "retrofit"
    write_atomic(base.with_suffix(".json"), json.dumps(summary, indent=2, allow_nan=False) + "\n")
    write_atomic(base.with_suffix(".md"), to_markdown(summary))


def keep_tracebacks(output: Path, outcome: Outcome[Any]) -> None:
    """Of a job that died, or of cells that failed, in OUTPUT/failures."""
    from semflow.files import write_atomic

    from ..shared.store import digest

    found = {digest(outcome.job.cells[0].config()): outcome.traceback} if outcome.error else {}
    found |= {digest(f.cell.config()): f.traceback for f in outcome.result or ()}
    for name, text in found.items():
        write_atomic(output / "failures" / f"{name}.txt", text)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends like an interrupt
    sys.exit(main())
