"""How cost grows: `python -m benchmarks.growth [--quick] [--json FILE] [--plots FOLDER]`.

Seconds and memory of a training step and of inference over one size at a time, the others fixed:

- `image_size`, `batch`    SANFlow on given features of ResNet-18
- `channels`, `locations`, `blocks`    one flow of couplings with a code of 512 channels
- `images`    a whole fit on a data set: one epoch with synthetic anomalies, calibration included, at 128 px

One thread, CPU seconds, the least of some runs. Every point is a process of its own; memory is the peak of resident
memory above model, features and images. The JSON file holds the points and, for each curve, the exponent of its upper
half: 1 means that twice the size costs twice as much. Plots need matplotlib.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..shared.record import provenance
from .curves import AXES, SEED, exponent, grow

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two small points an axis")
    parser.add_argument("--only", nargs="+", choices=AXES, default=list(AXES), help="axes, all by default")
    parser.add_argument("--json", type=Path, help="file for points and exponents, with command, versions and machine")
    parser.add_argument("--plots", type=Path, help="folder for a PNG of each axis")
    options = parser.parse_args(arguments)
    command = ["python", "-m", "benchmarks.growth", *(sys.argv[1:] if arguments is None else arguments)]
    found: dict[str, Any] = {"axes": {}, **provenance(command), "seed": SEED, "threads": 1}
    for axis in options.only:
        points = grow(axis, AXES[axis].quick if options.quick else AXES[axis].values)
        slopes = {what: exponent(points, axis, what) for what in points[0] if what != axis}
        found["axes"][axis] = {"label": AXES[axis].label, "points": points, "exponents": slopes}
        print(f"{axis:12} exponents {slopes}", flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    if options.plots:
        from .plot import draw

        for axis, curves in found["axes"].items():
            print(draw(axis, curves, options.plots))


if __name__ == "__main__":
    main()
