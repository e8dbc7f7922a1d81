"""Measure how time and memory of a training step and of inference grow with one size, the others fixed.

    python -m benchmarks.growth [--quick] [--json FILE] [--plots FOLDER]

- `image_size`, `batch`    SANFlow on given features of ResNet-18
- `channels`, `locations`, `blocks`    one flow of couplings with a position code of 512 channels
- `images`    one epoch of `fit` with synthetic anomalies at 128 px, including the score's constants

CPU seconds of one thread, the lowest of several runs, each point in a separate process; memory is the peak above model,
features and images. The JSON file contains the points and the exponent of the upper half of each curve: with 1, twice
the size costs twice as much. Plots need matplotlib.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..shared.record import provenance, write_json
from .curves import AXES, SEED, exponent, grow


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two small points per axis")
    parser.add_argument("--only", nargs="+", choices=AXES, default=list(AXES), help="default: all")
    parser.add_argument("--json", type=Path, help="file for points and exponents, with command, versions and machine")
    parser.add_argument("--plots", type=Path, help="folder for one PNG per axis")
    options = parser.parse_args(arguments)
    command = ["python", "-m", "benchmarks.growth", *(sys.argv[1:] if arguments is None else arguments)]
    found: dict[str, Any] = {"axes": {}, **provenance(command), "seed": SEED, "threads": 1}
    for axis in options.only:
        points = grow(axis, AXES[axis].quick if options.quick else AXES[axis].values)
        slopes = {what: exponent(points, axis, what) for what in points[0] if what != axis}
        found["axes"][axis] = {"label": AXES[axis].label, "points": points, "exponents": slopes}
        print(f"{axis:12} exponents {slopes}", flush=True)
    if options.json:
        write_json(options.json, found)
    if options.plots:
        from .plot import draw

        for axis, curves in found["axes"].items():
            print(draw(axis, curves, options.plots))


if __name__ == "__main__":
    main()
