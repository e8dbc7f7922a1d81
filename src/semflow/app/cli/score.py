"""`semflow score`: more images than one process should score, on Ray; blocks of rows that are each there or not."""

__all__ = ["run"]

import os
import sys
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from semflow._optional import import_optional
from semflow.app.scale import BlockStore, Committed, Workers, connected, read_listing, score_blocks
from semflow.app.scale.cluster import cpu_count, resources
from semflow.detectors import Predictor
from semflow.errors import ConfigError, DataError, DeviceError

from .calibrate import decide_at
from .console import say, track
from .inputs import fingerprint
from .options import Device, Score


def run(options: Score) -> None:
    """Find out what is missing in the output folder, and let workers commit it."""
    for package in ("pyarrow", "ray"):
        import_optional(package)
    model = options.model.absolute()
    mark = fingerprint(model)
    detector = decide_at(model, "cpu", options.false_alarm_rate)  # says what is wrong with it before Ray begins
    image_size, rate = detector.provenance.image_size, detector.false_alarm_rate
    del detector
    store = BlockStore(
        options.output.absolute(),
        read_listing(options.input),
        options.block_size,
        {"--model": mark, "--false-alarm-rate": rate},
    )
    store.open()
    done = store.committed(notice=lambda line: print(line, file=sys.stderr))
    if options.on_error == "stop":  # images that could not be read may be whole by now
        done = {number: block for number, block in done.items() if not block.errors}
    todo = [block for block in store if block.number not in done]
    if not todo:
        say(f"{options.output} is complete already, of the same model and images")
    elif done:
        say(f"going on: {len(done)} of {len(store)} blocks are done already")
    if todo:
        with connected(_cpus(options)) as ray:
            workers = _workers(options, *resources(ray))
            load = partial(_load, model, "cuda" if workers.gpu else "cpu", options.false_alarm_rate, mark)
            if len(store) < 2 * workers.count:
                warnings.warn(
                    f"{len(store)} blocks are few for {workers.count} workers, which commit a block at a time; "
                    "choose a smaller --block-size",
                    stacklevel=1,
                )
            skip = options.on_error == "skip"
            scored = score_blocks(ray, store, todo, load, image_size, workers, skip)
            for block in track(scored, "scoring blocks", len(todo)):
                done[block.block] = block
    store.tidy()
    _conclude(options, done)


def _cpus(options: Score) -> int:
    """What Ray is to count on this machine, where it begins one of its own."""
    return Workers(options.workers, _threads(options), gpu=False).cpus


def _threads(options: Score) -> int:
    """Of each worker: on this machine its share of the CPUs, on a cluster, whose machines may differ, one."""
    shared = 1 if os.environ.get("RAY_ADDRESS") else max(1, cpu_count() // options.workers)
    return options.threads or shared


def _workers(options: Score, cpus: float, gpus: float) -> Workers:
    """The workers, if they all fit; Ray would wait for ever for what does not."""
    gpu = options.device == "cuda" or (options.device == "auto" and gpus >= 1)
    workers = Workers(options.workers, _threads(options), gpu, options.batch_size)
    if gpu and gpus < options.workers:
        raise DeviceError(
            f"--workers {options.workers} take a GPU each, but Ray has {gpus:g}; use fewer, or --device cpu"
        )
    if workers.cpus > cpus:
        raise ConfigError(
            f"--workers {options.workers} of {workers.threads} threads and one that decodes need {workers.cpus} CPUs, "
            f"but Ray has {cpus:g}; use fewer --workers or --threads"
        )
    return workers


def _load(model: Path, device: Device, false_alarm_rate: float | None, mark: str) -> Predictor:
    """The model, on a worker: the very one that the command has seen."""
    if fingerprint(model) != mark:
        raise DataError(f"--model {model} is another one on a worker than where the command runs; share or copy it")
    return decide_at(model, device, false_alarm_rate)


def _conclude(options: Score, done: Mapping[int, Committed]) -> None:
    blocks: Any = done.values()
    images, broken = sum(block.images for block in blocks), sum(block.errors for block in blocks)
    first = min((block for block in blocks if block.errors), default=None)
    if first is not None:
        print(f"{broken} images could not be read, the first: {first.error}", file=sys.stderr)
    highest = max((block for block in blocks if block.highest is not None), key=lambda b: b.highest, default=None)
    if highest is None:
        raise DataError(f"{options.input}: expected an image that can be read, but none of {images} can")
    without = f", left out {broken}" if broken else ""
    say(f"scored {images - broken} images{without}; the most anomalous is {highest.image} ({highest.highest:.4f})")
    anomalous = [block.anomalous for block in blocks if block.anomalous is not None]
    if anomalous:
        say(f"{sum(anomalous)} are called anomalous")
    say(f"wrote {options.output / 'blocks'}, {len(done)} Parquet files with a row an image")
