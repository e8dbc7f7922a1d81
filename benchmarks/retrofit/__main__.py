"""Command line of the comparison of flows with and without predicted statistics: `--help`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semflow.errors import ConfigError

from ..shared.datasets import Data, categories
from ..shared.record import write, write_json
from ..shared.runner import run_all
from ..shared.store import CellStore
from ..shared.study import Execute, Work, run_command, run_study

if TYPE_CHECKING:
    from .cells import RetrofitCell


DESCRIPTION = """Measure how predicted statistics change flows of other libraries.

One small flow per scale, written as users of each library write it, is trained on frozen features from the same seed
for the same number of steps with

    own        the library's standard normal and its log_prob
    learned    one learned variance per scale, added by as_flow and with_statistics: the control
    predicted  a predicted variance, added by as_flow and with_statistics(..., InverseGammaVariance)

Figures are of the last step: log-likelihood of normal test images, image AUROC, pixel AUROC and AUPRO, without and, if
the flow has a log-det for each location, with the log-det in the score.

    python -m benchmarks.retrofit --data mvtec --categories toothbrush screw --seeds 0 1 2 --jobs 2 --threads 1
    python -m benchmarks.retrofit --output benchmarks/results/retrofit --report

Finished cells are kept: a run that was killed, repeated or extended measures only the missing ones. Written to
--output: retrofit.md, retrofit.json and cells.jsonl.

Exit codes: 0 done, 1 a cell failed (the others are done), 2 invalid arguments, 130 interrupted."""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the words of a command."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.retrofit", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    libraries = "freia, anomalib, nflows, normflows, zuko, torch, callable; default: all installed"
    add("--data", help="folder with a folder for each category, in the layout of MVTec AD")
    add("--categories", nargs="+", metavar="NAME", help="default: all")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    add("--libraries", nargs="+", metavar="NAME", help=libraries)
    add("--variants", nargs="+", metavar="NAME", help="own, learned, predicted; default: all")
    add("--backbone", default="tf_efficientnet_lite0", help="timm model name")
    add("--weights", default="packaged", help="packaged, hub, random or a file")
    add("--strides", nargs="+", type=int, default=[8, 16], metavar="N", help="of the feature maps, one flow for each")
    add("--image-size", type=int, default=256)
    add("--steps", type=int, default=150)
    add("--batch-size", type=int, default=4)
    add("--learning-rate", type=float, default=1e-3, help="of Adam, with a cosine decay to zero")
    add("--mode", type=float, default=1.0, help="initial variance of the added bases; 1 is that of the flow")
    add("--jobs", type=int, default=1, metavar="J", help="processes at a time, each with its own features")
    add("--threads", type=int, metavar="N", help="threads of each process")
    add("--output", type=Path, default=Path("runs/retrofit"), metavar="DIR")
    add("--cells", type=Path, metavar="FILE", help="finished cells; default: OUTPUT/cells.jsonl")
    add("--report", action="store_true", help="measure nothing: write the report of the cells that are kept")
    options = parser.parse_args(words)
    for name in ("jobs", "threads", "steps", "batch_size", "image_size", "learning_rate", "mode"):
        value, least = getattr(options, name), 0.0 if name in ("learning_rate", "mode") else 1
        if value is not None and (value < least or value == 0):
            expected = "above 0" if least == 0 else "at least 1"
            parser.error(f"--{name.replace('_', '-')} must be {expected}, but got {value}")
    if len(set(options.seeds)) < len(options.seeds) or min(options.seeds) < 0:
        parser.error(f"--seeds must be different whole numbers from 0, but got {options.seeds}")
    options.cells = options.cells or options.output / "cells.jsonl"
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    command = ("python", "-m", "benchmarks.retrofit", *(sys.argv[1:] if words is None else words))
    options = parse(words)
    return run_command(lambda: run(options, command))


def run(
    options: argparse.Namespace, command: Sequence[str], work: Work | None = None, execute: Execute = run_all
) -> int:
    """Run parsed options and return the exit code.

    Args:
        options: of `parse`.
        command: for the record.
        work: measures the cells of a job; `cells.perform` by default.
        execute: gives the jobs to processes.
    """
    from .cells import perform
    from .report import summarize, to_markdown

    store = CellStore(options.cells, notice=lambda line: print(line, file=sys.stderr))
    cells = [] if options.report else plan(options)

    def update() -> None:
        if options.report:
            kept = list(store.latest().values())
        else:
            kept = [found for cell in cells if (found := store.find(cell.key, cell.settings))]
        summary = summarize(kept, [cell.key for cell in cells], command)
        write_json(options.output / "retrofit.json", summary)
        write(options.output / "retrofit.md", to_markdown(summary))

    code = run_study(
        *(cells, store, command, options.output, update, work or perform, execute),
        group=lambda missing: groups(missing, options.jobs),
        at_a_time=options.jobs,
        threads=options.threads,
    )
    print(f"wrote {options.output / 'retrofit.md'}")
    return code


def plan(options: argparse.Namespace) -> list["RetrofitCell"]:
    """Return the cells of the options."""
    from .cells import RetrofitCell, Setup
    from .flows import LIBRARIES
    from .model import VARIANTS

    if options.data is None:
        raise ConfigError("--data must be the folder of the data set, but got none")
    libraries = chosen("libraries", options.libraries, list(LIBRARIES))
    absent: list[str] = []
    if not options.libraries:
        absent = [name for name in libraries if not LIBRARIES[name].installed]
        libraries = [name for name in libraries if name not in absent]
    variants: Any = chosen("variants", options.variants, list(VARIANTS))
    names = chosen("categories", options.categories, categories("mvtec", options.data))
    for library in libraries:
        LIBRARIES[library].require()
    if absent:
        print(f"left out because they are not installed: {', '.join(absent)}", file=sys.stderr)
    setup = Setup(
        *(options.backbone, options.weights, tuple(options.strides), options.image_size),
        *(options.steps, options.batch_size, options.learning_rate, options.mode),
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


def groups(cells: Sequence["RetrofitCell"], processes: int) -> list[list["RetrofitCell"]]:
    """Group the cells of each category, which share the features; split by library if there are more processes."""
    names = list(dict.fromkeys(cell.data.category for cell in cells))
    libraries = list(dict.fromkeys(cell.library for cell in cells))
    parts = -(-processes // max(1, len(names)))
    shared: dict[tuple[str, int], list[RetrofitCell]] = {}
    for cell in cells:
        shared.setdefault((cell.data.category, libraries.index(cell.library) % parts), []).append(cell)
    return list(shared.values())


def chosen(option: str, given: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Return the given names, or all."""
    for name in given or ():
        if name not in known:
            raise ConfigError(f"--{option} must be of {', '.join(known)}, but got {name}")
    return list(dict.fromkeys(given or known))


if __name__ == "__main__":
    sys.exit(main())
