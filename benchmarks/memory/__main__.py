"""Command line of the study of memories and flows: `--help`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from semflow.errors import ConfigError

from ..shared.datasets import Data, categories
from ..shared.record import write
from ..shared.runner import run_all
from ..shared.store import CellStore
from ..shared.study import Execute, Work, run_command, run_study
from .rows import ROWS, Setup

if TYPE_CHECKING:
    from .cells import StudyCell

TEXTURES = "brick", "grass", "gravel", "hubble_deep_field", "ihc", "moon"
DESCRIPTION = """Measure what memories of features, memories of a flow's latents and likelihoods find, alone and summed.

Categories are folders of --data in the layout of MVTec AD, and what is written for each seed: six textures of
scikit-image, the demo's among them, and loose_screw, if --data has screw, whose images are shifted by chance. A fifth
of the training images is held out. It standardizes the maps.

    python -m benchmarks.memory --data mvtec --categories screw grass --seeds 0
    python -m benchmarks.memory --output benchmarks/results/memory --report

Finished cells are kept: a run that was killed, repeated or extended measures only the missing ones. Written to
--output: study.md and cells.jsonl.

Exit codes: 0 done, 1 a cell failed (the others are done), 2 invalid arguments, 130 interrupted."""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the words of a command."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.memory", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", help="folder with a folder for each category, in the layout of MVTec AD")
    add("--categories", nargs="+", metavar="NAME", help="default: all of --data, and the textures")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    add("--rows", nargs="+", metavar="NAME", help="default: all; see rows.py")
    add("--without", nargs="+", metavar="NAME", default=[], help="rows to leave out")
    add("--magnifications", nargs="+", type=float, default=[1.0], metavar="M", help="of the images")
    add("--backbone", default="tf_efficientnet_lite0", help="timm model name")
    add("--weights", default="packaged", help="packaged, hub, random or a file")
    add("--image-size", type=int, default=256, help="of the images of --data; textures have 128 px")
    add("--vectors", type=int, default=6000, metavar="N", help="stored by a memory")
    add("--steps", type=int, default=160, metavar="N", help="of training a flow")
    add("--jobs", type=int, default=1, metavar="J", help="processes at a time")
    add("--threads", type=int, metavar="N", help="threads of each process")
    add("--textures", type=Path, default=Path("runs/textures"), metavar="DIR", help="where images are written")
    add("--output", type=Path, default=Path("runs/memory"), metavar="DIR")
    add("--report", action="store_true", help="measure nothing: write the report of the cells that are kept")
    options = parser.parse_args(words)
    for name in ("image_size", "vectors", "steps", "jobs", "threads"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, but got {value}")
    if len(set(options.seeds)) < len(options.seeds) or min(options.seeds) < 0:
        parser.error(f"--seeds must be different whole numbers from 0, but got {options.seeds}")
    if min(options.magnifications) < 1:
        parser.error(f"--magnifications must be at least 1, but got {options.magnifications}")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    command = ("python", "-m", "benchmarks.memory", *(sys.argv[1:] if words is None else words))
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
    from .report import to_markdown

    store = CellStore(options.output / "cells.jsonl", notice=lambda line: print(line, file=sys.stderr))
    code = run_study(
        *([] if options.report else plan(options), store, command, options.output),
        lambda: write(options.output / "study.md", to_markdown(list(store.latest().values()))),
        *(work or perform, execute),
        group=groups,
        at_a_time=options.jobs,
        threads=options.threads,
    )
    print(f"wrote {options.output / 'study.md'}")
    return code


def plan(options: argparse.Namespace) -> list["StudyCell"]:
    """Return the cells of the options, and write the textures among them."""
    from semflow.app.cli.demo_data import CROP, write_texture

    from .cells import StudyCell
    from .loose import LOOSE, write_loose

    own = categories("mvtec", options.data) if options.data else []
    known = [*own, *([LOOSE] if "screw" in own else []), *TEXTURES]
    for option, names, valid in (
        ("categories", options.categories or [], known),
        ("rows", [*(options.rows or []), *options.without], list(ROWS)),
    ):
        for name in names:
            if name not in valid:
                raise ConfigError(f"--{option} must be of {', '.join(valid)}, but got {name}")
    rows = [name for name in options.rows or ROWS if name not in options.without]
    cells = []
    for seed in options.seeds:
        for name in options.categories or known:
            texture = name in TEXTURES
            root = Path(options.data) if name in own else options.textures / str(seed)
            if not (root / name).is_dir():
                if texture:
                    write_texture(name, root / name, seed, TEXTURES)
                else:
                    write_loose(Path(options.data) / "screw", root / name, seed)
            data, size = Data("mvtec", str(root), name), CROP if texture else options.image_size
            setup = Setup(options.backbone, options.weights, size, options.vectors, options.steps)
            prints = data.fingerprint()
            cells += [
                StudyCell(row, data, prints, seed, magnification, setup)
                for magnification in options.magnifications
                for row in rows
                if magnification == 1 or ROWS[row].magnified
            ]
    return cells


def groups(cells: Sequence["StudyCell"]) -> list[list["StudyCell"]]:
    """Group cells that share images, features and flows."""
    shared: dict[tuple[Data, int, float], list[StudyCell]] = {}
    for cell in cells:
        shared.setdefault((cell.data, cell.seed, cell.magnification), []).append(cell)
    return list(shared.values())


if __name__ == "__main__":
    sys.exit(main())
