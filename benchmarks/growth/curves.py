"""Curves of `benchmarks.growth`: the work of each point, its measurement, and the exponent."""

import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import torch

from semflow.data import Sample
from semflow.flows import coupling_stack
from semflow.functional import k_center, nearest
from semflow.nn import SinusoidalPosition2d
from semflow.recipes import build
from semflow.training import fit

from ..speed.flows import inference, training_step
from ..speed.recipes import Case
from ..speed.timing import watching_memory

SEED = 0
Point = dict[str, float]
Run = Callable[[], object]


def detector_runs(image_size: int = 256, batch: int = 4, blocks: int = 8) -> dict[str, Run]:
    case = Case("sanflow", "resnet18", batch, blocks, image_size)

    def train() -> object:  # built late, because it sets the detector to training mode
        return case.train()()

    return {"infer": case.infer(), "train": train}


def flow_runs(channels: int = 256, locations: int = 1024, blocks: int = 4) -> dict[str, Run]:
    side = math.isqrt(locations)
    flow = coupling_stack(channels, blocks, context_channels=512)
    x = torch.randn(1, channels, side, side).contiguous(memory_format=torch.channels_last)
    code = SinusoidalPosition2d(512)(side, side)
    forward = lambda: flow(x, code)  # noqa: E731
    return {"infer": inference(flow, forward), "train": training_step(flow, forward)}


def textures(count: int, side: int) -> list[Sample]:
    generators = [torch.Generator().manual_seed(k) for k in range(count)]
    return [Sample(torch.rand(3, side, side, generator=g), 0, None, f"{k}.png") for k, g in enumerate(generators)]


def fit_runs(images: int, side: int = 128) -> dict[str, Run]:
    settings = {"backbone": "resnet18", "backbone.weights": "random", "couplings.blocks": 2, "image_size": side}
    detector = build("sanflow", settings)
    data = textures(images, side)
    return {"train": lambda: fit(detector, data, epochs=1, device="cpu", progress=False)}


def memory_runs(memory_images: int = 16, memory_image_size: int = 128) -> dict[str, Run]:
    settings = {"backbone": "resnet18", "backbone.weights": "random", "image_size": memory_image_size}
    detector = build("patchcore", settings)
    data = textures(memory_images, memory_image_size)
    images = torch.stack([sample.image for sample in data[:4]])
    maps = detector.features(images)

    def infer() -> object:
        with torch.inference_mode():
            return detector.eval()(images, maps)

    return {"train": lambda: fit(detector, data, device="cpu", progress=False), "infer": infer}


def stored_runs(stored_vectors: int, channels: int = 384, locations: int = 1024) -> dict[str, Run]:
    generator = torch.Generator().manual_seed(SEED)
    centers = torch.randn(64, channels, generator=generator)
    chosen = torch.randint(64, (stored_vectors + locations,), generator=generator)
    x = centers[chosen] + 0.3 * torch.randn(len(chosen), channels, generator=generator)
    queries, stored = x[:locations].contiguous(), x[locations:].contiguous()
    return {"train": lambda: k_center(stored, 0.1), "infer": lambda: nearest(queries, stored)}


class Axis(NamedTuple):
    """A size that grows: its work, its values, those of a quick run, and its name."""

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
    "memory_images": Axis(memory_runs, (8, 16, 32, 64, 128), (2, 4), "images of a memory"),
    "memory_image_size": Axis(memory_runs, (64, 128, 192, 256), (32, 64), "image size of a memory in pixels"),
    "stored_vectors": Axis(stored_runs, (2048, 4096, 8192, 16384, 32768), (64, 128), "vectors of a memory"),
}
ONCE = ("images", "memory_images", "memory_image_size")
"""Axes whose training is a whole `fit`, which is measured once."""


def measure_point(axis: str, value: int, least: float = 0.3) -> Point:
    """Return seconds and MiB of a point, measured in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    found: Point = {}
    for kind, run in AXES[axis].runs(**{axis: value}).items():
        with watching_memory("cpu") as above:
            seconds = timed(run)
        found[f"{kind}_mib"] = round(above() / 2**20, 2)
        began = time.perf_counter()
        while not (kind == "train" and axis in ONCE) and time.perf_counter() - began < least:
            seconds = min(seconds, timed(run))
        found[f"{kind}_s"] = round(seconds, 6)
    return found


def timed(run: Run) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def grow(axis: str, values: Iterable[int]) -> list[Point]:
    """Measure the points of an axis, each in a new process."""
    points = []
    for value in values:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            points.append({axis: value, **pool.submit(measure_point, axis, value).result()})
        print(f"{axis:12} " + ", ".join(f"{key} {number:g}" for key, number in points[-1].items()), flush=True)
    return points


def exponent(points: list[Point], axis: str, what: str) -> float:
    """Return the least-squares slope of log(what) over log(axis) of the upper half of the points."""
    upper = points[len(points) // 2 - (len(points) < 4) :]
    logs = [(math.log(point[axis]), math.log(max(point[what], 1e-9))) for point in upper]
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    return round(sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs), 2)
