"""The command line of `benchmarks.reproduce`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semflow.errors import ConfigError

from .tables import TABLES

__all__ = ["epochs_of", "pairs", "parse"]

DESCRIPTION = """Reproduce a table of the SANFlow paper, as far as it has flows, on data of yours.

    python -m benchmarks.reproduce --list
    python -m benchmarks.reproduce table5 --data mvtec --dry-run
    python -m benchmarks.reproduce table5 --data mvtec --categories screw toothbrush --seeds 0 1 2 \\
        --backbone tf_efficientnet_lite0 --weights packaged --epochs toothbrush=20 screw=3 --jobs 2 --threads 1

Each cell (a row, a category and a seed) is trained in a process of its own and kept under a hash of its whole
configuration: a run that was killed, or is repeated, or extended, does only what is missing. Figures are of the last
epoch. Written to --output: TABLE.md, TABLE.json, TABLE.png, TABLE.svg, and the cells.

Exit codes: 0 done, 1 a cell failed (the others are done), 2 a mistake in the command, 130 interrupted."""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Options out of words."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.reproduce", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("table", nargs="?", metavar="TABLE", help=", ".join(TABLES))
    add("--data", help="folder of the categories' folders; for cifar10 the folder of CIFAR-10")
    add("--categories", nargs="+", metavar="NAME", help="default: all there are")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    add("--rows", nargs="+", metavar="ROW", help="only these rows, see --list")
    add("--no-controls", action="store_true", help="leave out the rows that are not in the paper")
    add("--peers", action="store_true", help="measure PaDiM and PatchCore on the same features too, by anomalib")
    add("--epochs", nargs="+", default=[], metavar="[CATEGORY=]N", help="default: the recipe's, as in its paper")
    add("--backbone", help="timm's name; default: the paper's")
    add("--weights", default="hub", help="hub, packaged, random or a file")
    add("--image-size", type=int, default=256)
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="arguments of the recipes that have them")
    add(
        "--fit", nargs="+", default=[], metavar="NAME=VALUE", help="batch_size, learning_rate, schedule of the training"
    )
    add("--track-best", nargs="?", type=int, const=10, default=1, metavar="N", help="look at the test images N times")
    add("--device", default="cpu", help="auto, cpu, cuda, ...")
    add("--engine", choices=("processes", "ray"), default="processes", help="ray: on all machines of RAY_ADDRESS")
    add("--jobs", type=int, metavar="J", help="cells at a time; default: 1, with ray as many as there is room for")
    add("--threads", type=int, metavar="N", help="threads of each cell; with ray the CPUs it takes, default 1")
    add("--output", type=Path, default=Path("runs/benchmarks"), metavar="DIR")
    add("--cells", type=Path, metavar="DIR", help="where finished cells are kept; default: OUTPUT/cells")
    add("--no-chart", action="store_true", help="do without matplotlib")
    add("--list", action="store_true", help="tables; with TABLE its rows, with --data its cells too")
    add("--dry-run", action="store_true", help="cells, which are done, and how long the others may take")
    add("--report", action="store_true", help="write the table of the cells that there are")
    options = parser.parse_args(words)
    for name in ("jobs", "threads", "track_best", "image_size"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, but got {value}")
    if len(set(options.seeds)) < len(options.seeds) or min(options.seeds) < 0:
        parser.error(f"--seeds must be different whole numbers from 0 on, but got {options.seeds}")
    options.cells = options.cells or options.output / "cells"
    if options.engine == "processes":
        options.jobs = options.jobs or 1
    return options


def pairs(words: Sequence[str], option: str) -> dict[str, str]:
    """`NAME=VALUE` words.

    Raises:
        ConfigError: a word is none.
    """
    wrong = [word for word in words if "=" not in word]
    if wrong:
        raise ConfigError(f"{option} {wrong[0]}: expected NAME=VALUE")
    return dict(word.split("=", 1) for word in words)


def plain(word: str) -> Any:
    """A word as JSON where it is JSON."""
    try:
        return json.loads(word)
    except ValueError:
        return word


def epochs_of(words: Sequence[str], categories: Sequence[str]) -> dict[str, int | None]:
    """Epochs for each category: `N` for all, `CATEGORY=N` for one, None where nothing is said.

    Raises:
        ConfigError: no number of at least 1, or a category that is not among the categories.
    """
    found: dict[str, int | None] = dict.fromkeys(categories)
    for word in sorted(words, key=lambda word: "=" in word):  # what is said of one goes above what is said of all
        name, _, number = word.rpartition("=")
        if not number.isdigit() or int(number) < 1:
            raise ConfigError(f"--epochs {word}: expected N or CATEGORY=N, a whole number of at least 1")
        if name and name not in found:
            raise ConfigError(f"--epochs {word}: expected one of {', '.join(categories)}")
        found.update({name: int(number)} if name else dict.fromkeys(categories, int(number)))
    return found
