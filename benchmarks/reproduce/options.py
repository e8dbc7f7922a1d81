"""The command line of `benchmarks.reproduce`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semflow.errors import ConfigError

from .tables import TABLES

DESCRIPTION = """Reproduce a table of the SANFlow paper, as far as it has flows, on your data.

    python -m benchmarks.reproduce --list
    python -m benchmarks.reproduce table5 --data mvtec --dry-run
    python -m benchmarks.reproduce table5 --data mvtec --categories screw toothbrush --seeds 0 1 2 \\
        --backbone tf_efficientnet_lite0 --weights packaged --epochs toothbrush=20 screw=3 --jobs 2 --threads 1
    python -m benchmarks.reproduce table5 --output benchmarks/results/ablations --report

Each cell (a row, a category and a seed) is trained in a separate process and appended to OUTPUT/cells.jsonl. A run that
was killed, or is repeated or extended, measures only the missing cells and those whose settings changed. Figures are of
the last epoch. Written to --output: TABLE.md, TABLE.json, TABLE.png, TABLE.svg and cells.jsonl.

Exit codes: 0 done, 1 a cell failed (the others are done), 2 invalid arguments, 130 interrupted."""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the words of a command."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.reproduce", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("table", nargs="?", metavar="TABLE", help=", ".join(TABLES))
    add("--data", help="folder with a folder for each category; for cifar10 the folder of CIFAR-10")
    add("--categories", nargs="+", metavar="NAME", help="default: all")
    add("--seeds", nargs="+", type=int, metavar="N", help="default: 0 1 2")
    add("--rows", nargs="+", metavar="ROW", help="only these rows, see --list")
    add("--no-controls", action="store_true", help="leave out the rows that are not in the paper")
    add("--peers", action="store_true", help="also measure PaDiM and PatchCore, ours and anomalib's")
    add("--epochs", nargs="+", default=[], metavar="[CATEGORY=]N", help="default: the recipe's, as in its paper")
    add("--backbone", help="timm model name; default: the paper's")
    add("--weights", default="hub", help="hub, packaged, random or a file")
    add("--image-size", type=int, default=256)
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="recipe settings, such as couplings.blocks=4")
    add("--fit", nargs="+", default=[], metavar="NAME=VALUE", help="training: batch_size, learning_rate, schedule")
    add("--track-best", nargs="?", type=int, const=10, default=1, metavar="N", help="evaluate N times during training")
    add("--device", default="cpu", help="auto, cpu, cuda, ...")
    add("--engine", choices=("processes", "ray"), default="processes", help="ray: on all machines of RAY_ADDRESS")
    add("--jobs", type=int, metavar="J", help="cells at a time; default: 1, with ray as many as the machines can run")
    add("--threads", type=int, metavar="N", help="threads of each cell; with ray its number of CPUs, default 1")
    add("--output", type=Path, default=Path("runs/benchmarks"), metavar="DIR")
    add("--cells", type=Path, metavar="FILE", help="finished cells; default: OUTPUT/cells.jsonl")
    add("--no-chart", action="store_true", help="write no chart, which needs matplotlib")
    add("--list", action="store_true", help="list tables; with TABLE its rows, with --data also its cells")
    add("--dry-run", action="store_true", help="list the cells and estimate how long the missing ones take")
    add("--report", action="store_true", help="measure nothing: write the table of the cells that are kept")
    options = parser.parse_args(words)
    for name in ("jobs", "threads", "track_best", "image_size"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, but got {value}")
    seeds = options.seeds or [0]
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        parser.error(f"--seeds must be different whole numbers from 0, but got {seeds}")
    options.cells = options.cells or options.output / "cells.jsonl"
    if options.engine == "processes":
        options.jobs = options.jobs or 1
    return options


def pairs(words: Sequence[str], option: str) -> dict[str, Any]:
    """Return the values of `NAME=VALUE` words: numbers, lists and null as in JSON, `1,2` as a list, others as text."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{option} must have the form NAME=VALUE, but got {word}")
        parts = [_plain(part) for part in value.split(",")]
        found[name] = parts if len(parts) > 1 and not value.startswith("[") else _plain(value)
    return found


def _plain(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def epochs_of(words: Sequence[str], categories: Sequence[str]) -> dict[str, int | None]:
    """Return the epochs of each category: `N` is for all, `CATEGORY=N` for one; None is the recipe's number."""
    found: dict[str, int | None] = dict.fromkeys(categories)
    for word in sorted(words, key=lambda word: "=" in word):  # one category overrides all
        name, _, number = word.rpartition("=")
        if not number.isdigit() or int(number) < 1:
            raise ConfigError(f"--epochs must be N or CATEGORY=N with N at least 1, but got {word}")
        if name and name not in found:
            raise ConfigError(f"--epochs must name one of {', '.join(categories)}, but got {word}")
        found.update({name: int(number)} if name else dict.fromkeys(categories, int(number)))
    return found
