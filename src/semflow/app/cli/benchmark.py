"""`semflow benchmark`: time a run directory or an exported file on this machine."""

import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from semflow._channels import alike
from semflow._validation import counted
from semflow.app.export.check import sample_images
from semflow.app.export.exported import ExportedDetector
from semflow.app.export.runtime import SUFFIXES
from semflow.data import open_dataset
from semflow.detectors import Detector, Predictor
from semflow.errors import ConfigError
from semflow.files import refuse_unwritable, write_atomic

from .console import print_table, say
from .evaluate import versions
from .inputs import advise, load_detector, reading
from .options import Benchmark

LEAST, MOST, IMAGES = 3, 100_000, 64  # repeats, and images that are taken in turn
RUNTIMES = {".onnx": "onnxruntime", ".xml": "openvino"}
Parts = dict[str, float]


class Timing(NamedTuple):
    """Seconds of each part in each repeat."""

    repeats: list[Parts]

    def milliseconds(self, percentile: float, part: str | None = None) -> float:
        """Return a percentile over the repeats, of one part or of their sum."""
        return 1e3 * float(
            np.percentile([sum(x.values()) if part is None else x[part] for x in self.repeats], percentile)
        )

    @property
    def parts(self) -> list[str]:
        """Names of the parts."""
        return list(self.repeats[0])

    def as_dict(self) -> dict[str, object]:
        """Return medians and 95th percentiles for a JSON file."""
        return {
            "repeats": len(self.repeats),
            "median_ms": self.milliseconds(50),
            "p95_ms": self.milliseconds(95),
            "parts_median_ms": {part: self.milliseconds(50, part) for part in self.parts},
        }


def run(options: Benchmark) -> None:
    """Load the model, time single images and batches, and report."""
    if not (0 < options.seconds < math.inf):
        raise ConfigError(f"--seconds must be a positive number, but got {options.seconds:g}")
    if options.json is not None:
        refuse_unwritable(options.json)
    if options.images is not None:
        advise(options.images, "--images")
    start = time.perf_counter()
    detector = load_detector(options.model, options.device)
    loaded = time.perf_counter() - start
    step = _step(detector, options.images)
    one = timed(lambda repeat: step([repeat]), options.seconds / 2)
    size = options.batch_size
    batches = timed(lambda repeat: step(range(repeat * size, (repeat + 1) * size)), options.seconds / 2)
    _report(options, detector, loaded, one, batches)


def timed(step: Callable[[int], Parts], seconds: float) -> Timing:
    """Repeat a step for some seconds, at least `LEAST` times, after a tenth of the time to warm up."""
    for limit, least in ((seconds / 10, 1), (seconds, LEAST)):
        repeats: list[Parts] = []
        start = time.perf_counter()
        while len(repeats) < least or (time.perf_counter() - start < limit and len(repeats) < MOST):
            repeats.append(step(len(repeats)))
    return Timing(repeats)


def _step(detector: Predictor, path: Path | None) -> Callable[[Sequence[int]], Parts]:
    """Return a function that predicts some images and measures its parts."""
    made = detector.provenance
    dataset = None if path is None else open_dataset(path, "predict", made.loaded_size, **reading(detector, None))
    textures = sample_images(made.image_size, made.channels).float() / 255

    def step(indices: Sequence[int]) -> Parts:
        clock = _Clock(detector.device)
        if dataset is None:
            images = _batches(detector, [textures[index % len(textures)] for index in indices])
            clock.skip()
        else:
            images = _batches(detector, [dataset[index % min(IMAGES, len(dataset))].image for index in indices])
            clock.measure("decode")
        _predict(detector, images, clock)
        return clock.parts

    return step


def _batches(detector: Predictor, images: list[Tensor]) -> list[Tensor]:
    """Return a batch of all images, or with tiles one of each, since images may have several sizes."""
    return [torch.stack(alike(images))] if detector.provenance.tiles is None else [image[None] for image in images]


@torch.no_grad()
def _predict(detector: Predictor, batches: list[Tensor], clock: "_Clock") -> None:
    if isinstance(detector, Detector) and detector.provenance.tiles is None:
        given = batches[0].to(detector.device)
        maps = detector.feature_maps(given)
        clock.measure("backbone")
        detector(given, maps).score.cpu()
        clock.measure("flows and score")
    else:
        for images in batches:
            detector.predict(images)
        clock.measure("model")


class _Clock:
    """Clock that waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: Parts = {}
        self.last = time.perf_counter()

    def skip(self) -> None:
        """Start the next part now."""
        self.last = time.perf_counter()

    def measure(self, part: str) -> None:
        """Take the time since the last part for this one."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        now = time.perf_counter()
        self.parts[part] = now - self.last
        self.last = now


def _report(options: Benchmark, detector: Predictor, loaded: float, one: Timing, batches: Timing) -> None:
    exported = detector if isinstance(detector, ExportedDetector) else None
    formats = {suffix: name for name, suffix in SUFFIXES.items()}
    kind = formats[options.model.suffix] if exported else "run directory"
    threads = getattr(exported.runner, "threads", None) if exported else torch.get_num_threads()
    packages = {name: metadata.version(name) for name in [RUNTIMES.get(options.model.suffix, "")] if exported and name}
    speed = 1e3 * options.batch_size / batches.milliseconds(50)
    cpus, about = _usable_cpus(), {**versions(), **packages}
    machine: dict[str, Any] = {
        "cpu": cpu_name(),
        "cpus": cpus,
        "threads": threads,
        "gpu": torch.cuda.get_device_name(detector.device) if detector.device.type == "cuda" else None,
        "system": platform.platform(),
    }
    result: dict[str, Any] = {
        "model": str(options.model),
        "format": kind,
        "precision": exported.metadata.precision if exported else "float32",
        "image_size": detector.provenance.image_size,
        "tiles": None if (tiles := detector.provenance.tiles) is None else tiles.as_dict(),
        "device": options.device if exported else str(detector.device),
        "images": None if options.images is None else str(options.images),
        "load_seconds": loaded,
        "one_image": one.as_dict(),
        "batches": {"batch_size": options.batch_size, "images_per_second": speed, **batches.as_dict()},
        "machine": machine,
        "versions": about,
    }
    used = "threads as the runtime decides" if threads is None else counted(threads, "thread")
    size = f"{'' if tiles is None else 'tiles of '}{result['image_size']} px"
    say(f"{options.model}: {kind}, {result['precision']}, {size}, loaded in {loaded:.1f} s")
    say(f"{machine['gpu'] or machine['cpu']}, {counted(cpus, 'CPU')}, {used}; {_listed(about)}")
    parts = one.parts if len(one.parts) > 1 else []
    print_table(
        f"one image, {counted(len(one.repeats), 'repeat')}",
        ("part", "median ms", "95th percentile ms"),
        [
            (name, *(f"{one.milliseconds(percentile, part):.2f}" for percentile in (50, 95)))
            for name, part in [*((x, x) for x in parts), ("total", None)]
        ],
    )
    say(f"batches of {options.batch_size}: {speed:.1f} images per second")
    if options.json is not None:
        write_atomic(options.json, json.dumps(result, indent=2) + "\n")
        say(f"wrote {options.json}")


def _listed(found: dict[str, str]) -> str:
    names = ("semflow", "torch", *RUNTIMES.values())
    return ", ".join(f"{name} {found[name]}" for name in names if name in found)


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """Return the name of the CPU, or its architecture if the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return next(iter(names), "") or platform.processor() or platform.machine()
