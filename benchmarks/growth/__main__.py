"""Measure how time and memory of a training step and of inference grow with one size, the others fixed.

    python -m benchmarks.growth [--quick] [--json FILE] [--plots FOLDER]

- `image_size`, `batch`    SANFlow on given features of ResNet-18
- `channels`, `locations`, `blocks`    one flow of couplings with a position code of 512 channels
- `images`    one epoch of `fit` with synthetic anomalies at 128 px, including the score's constants
- `memory_images`, `memory_image_size`    PatchCore on ResNet-18: training is `fit`, inference is from given features
- `stored_vectors`    the choice of a tenth of the vectors, and the search for the nearest of 1,024 locations in all

CPU seconds of one thread, the lowest of several runs, each point in a separate process; memory is the peak above model,
features and images. The JSON file contains the points and the exponent of the upper half of each curve: with 1, twice
the size costs twice as much. Plots need matplotlib.
"""

import argparse
import json
import os
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
    parser.add_argument(
        "--json", type=Path, help="file for points and exponents, with their records; --only keeps the rest of it"
    )
    parser.add_argument("--plots", type=Path, help="folder for one PNG per axis")
    options = parser.parse_args(arguments)
    command = ["python", "-m", "benchmarks.growth", *(sys.argv[1:] if arguments is None else arguments)]
    record: dict[str, Any] = {**provenance(command), "seed": SEED, "threads": 1}
    found: dict[str, Any] = {"axes": {}, **record}
    some = options.only != list(AXES)
    if some and options.json and options.json.is_file():
        found = json.loads(options.json.read_text("utf-8"))
    for axis in options.only:
        record["load_before"] = round(os.getloadavg()[0], 1)
        points = grow(axis, AXES[axis].quick if options.quick else AXES[axis].values)
        slopes = {what: exponent(points, axis, what) for what in points[0] if what != axis}
        found["axes"][axis] = {"label": AXES[axis].label, "points": points, "exponents": slopes}
        if some:
            found["axes"][axis]["record"] = dict(record)
        print(f"{axis:12} exponents {slopes}", flush=True)
    if options.json:
        write_json(options.json, found)
    if options.plots:
        from .plot import draw

        for axis in options.only:
            print(draw(axis, found["axes"][axis], options.plots))


if __name__ == "__main__":
    main()
