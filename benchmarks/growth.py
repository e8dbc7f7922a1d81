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
import math
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from semflow.data import Sample
from semflow.detectors import fit
from semflow.flows import coupling_stack
from semflow.nn import SinusoidalPosition2d
from semflow.recipes import sanflow

from .shared.record import provenance
from .speed.flows import inference, training_step
from .speed.recipes import Case
from .speed.timing import watching_memory

__all__ = ["AXES", "Axis", "exponent", "grow", "main"]

Point = dict[str, float]
Run = Callable[[], object]


def detector_runs(image_size: int = 256, batch: int = 4, blocks: int = 8) -> dict[str, Run]:
    case = Case("sanflow", "resnet18", batch, blocks, image_size)

    def train() -> object:  # made late: it puts the detector into training
        return case.train()()

    return {"infer": case.infer(), "train": train}


def flow_runs(channels: int = 256, locations: int = 1024, blocks: int = 4) -> dict[str, Run]:
    side = math.isqrt(locations)
    flow = coupling_stack(channels, blocks, context_channels=512)
    x = torch.randn(1, channels, side, side).contiguous(memory_format=torch.channels_last)
    code = SinusoidalPosition2d(512)(side, side)
    forward = lambda: flow(x, code)  # noqa: E731
    return {"infer": inference(flow, forward), "train": training_step(flow, forward)}


def fit_runs(images: int, side: int = 128) -> dict[str, Run]:
    detector = sanflow("resnet18", "random", blocks=2, image_size=side)
    data = [
        Sample(torch.rand(3, side, side, generator=torch.Generator().manual_seed(k)), 0, None, f"{k}.png")
        for k in range(images)
    ]
    return {"train": lambda: fit(detector, data, epochs=1, progress=False)}


class Axis(NamedTuple):
    """One size that grows: what is run for it, its values, and those of a short run."""

    runs: Callable[..., dict[str, Run]]
    values: tuple[int, ...]
    quick: tuple[int, ...]
    label: str


AXES = {
    "image_size": Axis(detector_runs, (128, 192, 256, 384, 512), (64, 128), "image size in pixels"),
    "batch": Axis(detector_runs, (1, 2, 4, 8, 16), (1, 2), "batch"),
    "channels": Axis(flow_runs, (64, 128, 256, 512, 1024, 2048), (32, 64), "channels C"),
    "locations": Axis(flow_runs, (256, 1024, 4096, 16384), (64, 256), "locations H W"),
    "blocks": Axis(flow_runs, (1, 2, 4, 8, 16), (1, 2), "blocks L"),
    "images": Axis(fit_runs, (16, 32, 64, 128, 256), (4, 8), "images of the data set"),
}


def measure_point(axis: str, value: int, least: float = 0.3) -> Point:
    """Seconds and MiB of a point, in this process."""
    torch.set_num_threads(1)
    found: Point = {}
    for kind, run in AXES[axis].runs(**{axis: value}).items():
        with watching_memory("cpu") as above:
            seconds = timed(run)
        found[f"{kind}_mib"] = round(above() / 2**20, 2)
        began = time.perf_counter()
        while axis != "images" and time.perf_counter() - began < least:
            seconds = min(seconds, timed(run))
        found[f"{kind}_s"] = round(seconds, 6)
    return found


def timed(run: Run) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def grow(axis: str, values: Iterable[int]) -> list[Point]:
    """The points of an axis, each measured in a fresh process."""
    points = []
    for value in values:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            points.append({axis: value, **pool.submit(measure_point, axis, value).result()})
        print(f"{axis:12} " + ", ".join(f"{key} {number:g}" for key, number in points[-1].items()), flush=True)
    return points


def exponent(points: list[Point], axis: str, what: str) -> float:
    """The slope of log(what) over log(axis) by least squares, of the upper half of the points."""
    upper = points[len(points) // 2 - (len(points) < 4) :]
    logs = [(math.log(point[axis]), math.log(max(point[what], 1e-9))) for point in upper]
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    return round(sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs), 2)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small points an axis")
    parser.add_argument("--only", nargs="+", choices=AXES, default=list(AXES), help="axes, all by default")
    parser.add_argument("--json", type=Path, help="file for points and exponents, with command, versions and machine")
    parser.add_argument("--plots", type=Path, help="folder for a PNG of each axis")
    options = parser.parse_args(arguments)
    command = ["python", "-m", "benchmarks.growth", *(sys.argv[1:] if arguments is None else arguments)]
    found: dict[str, Any] = {"axes": {}, **provenance(command), "threads": 1}
    for axis in options.only:
        points = grow(axis, AXES[axis].quick if options.quick else AXES[axis].values)
        slopes = {what: exponent(points, axis, what) for what in points[0] if what != axis}
        found["axes"][axis] = {"label": AXES[axis].label, "points": points, "exponents": slopes}
        print(f"{axis:12} exponents {slopes}", flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    if options.plots:
        from .growth_plot import draw

        for axis, curves in found["axes"].items():
            print(draw(axis, curves, options.plots))


if __name__ == "__main__":
    main()
