"""`semflow score`: score a large number of images with Ray, in blocks that are committed one by one."""

import json
import os
import sys
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from semflow._optional import import_optional
from semflow._validation import counted
from semflow.app.scale import BlockStore, Committed, Workers, connected, read_listing, score_blocks
from semflow.app.scale.blocks import read_scores
from semflow.app.scale.cluster import cpu_count, resources
from semflow.detectors import Predictor
from semflow.errors import ConfigError, DataError, DeviceError
from semflow.files import write_atomic

from .console import decided, say, track
from .drift import open_drift, record_drift
from .inputs import advise, exit_code, fingerprint, load_detector, note_of, rows_of
from .option_types import Device
from .options import Score
from .tiling import check_tiles


def run(options: Score) -> int:
    """Score the blocks that are missing in the output folder."""
    for package in ("pyarrow", "ray"):
        import_optional(package)
    if options.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"--device must be auto, cpu or cuda, since Ray gives each worker its GPU, but got {options.device}"
        )
    advise(options.input, "--input", (".txt", ".parquet"))
    model = options.model.absolute()
    origin = fingerprint(model)
    chosen = (options.false_alarm_rate, options.category)
    detector = load_detector(model, "cpu", *chosen)  # finds mistakes before Ray starts
    check_tiles(options, detector.provenance)
    test = open_drift(options.drift, detector, model, origin, options.category) if options.drift else None
    made, rate = detector.provenance, detector.false_alarm_rate
    if made.regions:
        raise ConfigError("--model must need no masks for semflow score, but got one with a region for each image")
    del detector
    about = {"--model": origin, "--false-alarm-rate": rate}
    about |= {"--category": options.category} if options.category is not None else {}
    listing = read_listing(options.input)
    store = BlockStore(options.output.absolute(), listing, options.block_size, about)
    store.open()
    done = store.committed(notice=lambda line: print(line, file=sys.stderr))
    if options.on_error == "stop":  # unreadable images may have been repaired
        done = {number: block for number, block in done.items() if not block.errors}
    todo = [block for block in store if block.number not in done]
    if not todo:
        say(f"{options.output} is already complete for this model and these images")
    elif done:
        say(f"continuing: {len(done)} of {len(store)} blocks are done")
    if todo:
        shared = 1 if os.environ.get("RAY_ADDRESS") else max(1, cpu_count() // options.workers)
        threads = options.threads or shared
        with connected(Workers(options.workers, threads, gpu=False).cpus) as ray:
            workers = _workers(options, threads, *resources(ray))
            load = partial(_load, model, "cuda" if workers.gpu else "cpu", chosen, origin)
            if len(store) < 2 * workers.count:
                warnings.warn(
                    f"{len(store)} block{' does' if len(store) == 1 else 's do'} not keep {workers.count} workers "
                    "busy; choose a smaller --block-size",
                    stacklevel=1,
                )
            scored = score_blocks(
                ray, store, todo, load, made.loaded_size, workers, options.on_error == "skip", made.resize
            )
            for block in track(scored, "scoring blocks", len(todo)):
                done[block.block] = block
    store.tidy()
    if listing.passed_over:
        rows = rows_of(listing.passed_over, options.input)
        write_atomic(options.output / "passed_over.json", json.dumps(rows, indent=2) + "\n")
    paged = _report(options, done, rate, note_of(listing.passed_over, options.input))
    if test is not None and options.drift is not None:
        scores, p_values, names = read_scores(store)
        # A name may be used again for another photograph, which has another score.
        marks = [f"{listing.root}/{name} {score:.3g}" for name, score in zip(names, scores, strict=True)]
        record_drift(test, options.drift, scores, p_values, marks)
    return exit_code(listing.passed_over) or int(paged > 0)


def _workers(options: Score, threads: int, cpus: float, gpus: float) -> Workers:
    """Return the workers. Raise if there are too few CPUs or GPUs, for which Ray would wait forever."""
    gpu = options.device == "cuda" or (options.device == "auto" and gpus >= 1)
    if gpu and options.threads is not None:
        raise ConfigError(f"--threads must be left out for workers with GPUs, but got {options.threads}")
    workers = Workers(options.workers, threads, gpu, options.batch_size)
    if gpu and gpus < options.workers:
        raise DeviceError(
            f"--workers must be at most {gpus:g}, the number of GPUs, but got {options.workers}; or use --device cpu"
        )
    if workers.cpus > cpus:
        raise ConfigError(
            f"--workers must fit into {cpus:g} CPUs, but got {options.workers} with {threads} threads each and one for "
            f"decoding, {workers.cpus} in total; use fewer --workers or --threads"
        )
    return workers


def _load(model: Path, device: Device, chosen: tuple[float | None, str | None], origin: str) -> Predictor:
    """Load the model on a worker, and check that it is the model of the command."""
    if fingerprint(model) != origin:
        raise DataError(f"--model {model} must be the same on all machines, but got another one on a worker; copy it")
    return load_detector(model, device, *chosen)


def _report(options: Score, done: Mapping[int, Committed], rate: float | None, passed_over: str) -> int:
    """Print a summary, and return the number of files of which only the first page was scored."""
    blocks: Any = done.values()
    images, broken = sum(block.images for block in blocks), sum(block.errors for block in blocks)
    paged = sum(block.paged for block in done.values())
    first = min((block for block in blocks if block.errors), default=None)
    if first is not None:
        are = "is" if broken == 1 else "are"
        print(f"{counted(broken, 'image')} {are} not readable; the first error: {first.error}", file=sys.stderr)
    highest = max((block for block in blocks if block.highest is not None), key=lambda b: b.highest, default=None)
    if highest is None:
        raise DataError(f"{options.input} must contain a readable image, but got none in {images}")
    skipped = f", skipped {broken}" if broken else ""
    most = f"the most anomalous is {highest.image} ({highest.highest:.4f})"
    say(f"scored {counted(images - broken, 'image')}{skipped}; {most}{passed_over}")
    if paged:
        say(f"scored only the first page of {counted(paged, 'file')} with several; save each page as a file")
    if rate is not None:
        say(decided(sum(block.anomalous or 0 for block in blocks), images - broken, rate))
    say(f"wrote {options.output / 'blocks'}: {len(done)} Parquet files with one row per image")
    return paged
