"""`semflow evaluate`: compute the metrics of a detector on a labeled test set."""

import json
import platform
from importlib import metadata

from semflow._validation import counted
from semflow._version import __version__
from semflow.data import ImageDataset, open_dataset
from semflow.detectors import Predictor
from semflow.errors import DataError
from semflow.files import refuse_unwritable, write_atomic
from semflow.training import Evaluation, Processes, check_labels, results, summarize
from semflow.training.evaluation import images_at_once
from semflow.training.loading import dealt_batches

from .console import print_table, say, track
from .halves import in_halves
from .inputs import (
    advise,
    cache_small,
    check_images,
    check_tiles,
    exit_code,
    launched,
    load_detector,
    note_of,
    reading,
    rows_of,
    warn_of_leaks,
)
from .options import Evaluate

METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO", "image_f1_max": "image F1-max"}
RATES = {
    "false_alarm_rate": "good images called anomalous",
    "detection_rate": "defects called anomalous",
    "mask_false_alarm_rate": "good images with a mask",
}


def run(options: Evaluate) -> int:
    """Score the test set, print the metrics, and write them if asked to. Several processes share the images."""
    if options.json is not None:
        if options.json.is_dir():
            raise DataError(f"--json must be a file to write, but got the folder {options.json}")
        refuse_unwritable(options.json)
    advise(options.data, "--data")
    with launched(options.device) as (processes, _):
        detector = in_halves(load_detector(options.model, options.device, options.false_alarm_rate))
        check_tiles(options, detector.provenance)
        size, read = detector.provenance.loaded_size, reading(detector, options.region)
        dataset = open_dataset(options.data, "test", size, category=options.category, **read)
        found = _evaluate(options, detector, dataset, processes)
        if processes.rank == 0:
            _report(options, found, dataset, detector.false_alarm_rate)
        return exit_code(dataset.passed_over) if processes.count == 1 else 0  # torchrun takes others for failures


def _evaluate(options: Evaluate, detector: Predictor, dataset: ImageDataset, processes: Processes) -> Evaluation:
    first = processes.rank == 0
    check_labels(dataset)
    if first:
        warn_of_leaks(options.data, options.category)
        check_images(cache_small(dataset, options.workers))
    processes.gather_all(None)  # wait for the check
    scored = results(detector, dataset, batch_size=options.batch_size, workers=options.workers, processes=processes)
    at_once = images_at_once(detector, options.batch_size)
    own = sum(map(len, dealt_batches(len(dataset), at_once, processes).batches))
    return summarize(track(scored, "scoring", own) if first else scored, processes)


def _report(options: Evaluate, found: Evaluation, dataset: ImageDataset, rate: float | None) -> None:
    metrics = found.as_dict()
    print_table(
        f"{options.model} on {options.data}",
        ("images", "defects", *METRICS.values()),
        [(str(found.images), str(found.anomalous_images), *(percent(metrics[name]) for name in METRICS))],
    )
    if rate is not None:
        print_table(
            "decisions, percent of the images",
            ("calibrated rate", *RATES.values()),
            [(percent(rate), *(percent(metrics[name]) for name in RATES))],
        )
    if dataset.passed_over:
        say(f"evaluated {counted(found.images, 'image')}{note_of(dataset.passed_over, dataset.root)}")
    if options.json is not None:
        passed_over = rows_of(dataset.passed_over, dataset.root)
        origin = {"model": str(options.model), "data": str(options.data), "versions": versions()}
        content = {**metrics, "calibrated_false_alarm_rate": rate, "passed_over": passed_over, **origin}
        write_atomic(options.json, json.dumps(content, indent=2) + "\n")
        say(f"wrote {options.json}")


def percent(value: float | None) -> str:
    """Format a fraction as percent, or as a dash if it is None."""
    return "-" if value is None else f"{100 * value:.2f}"


def versions() -> dict[str, str]:
    """Return the versions of semflow, Python and the libraries on which the metrics depend."""
    others = {name: metadata.version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow", "scipy")}
    return {"semflow": __version__, "python": platform.python_version(), **others}
