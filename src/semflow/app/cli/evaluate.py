"""`semflow evaluate`: a run directory and a labelled test set to metrics."""

__all__ = ["METRICS", "percent", "run"]

import json
import platform
from importlib import metadata

from semflow._version import __version__
from semflow.data import open_dataset
from semflow.errors import DataError
from semflow.files import refuse_unwritable, write_atomic
from semflow.training import Processes, check_labels, results, summarize
from semflow.training.loading import dealt_batches

from .calibrate import decide_at
from .console import print_table, say, track
from .inputs import verified, warn_of_leaks
from .options import Evaluate
from .together import together

METRICS = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "image_f1_max": "image F1-max",
}
RATES = {
    "false_alarm_rate": "good ones called anomalous",
    "detection_rate": "defects called anomalous",
    "mask_false_alarm_rate": "good ones with a mask",
}


def run(options: Evaluate) -> None:
    """Score the test set, show the metrics, and write them if asked to; several processes share it out."""
    with together(options.device) as (processes, _):
        _run(options, processes)


def _run(options: Evaluate, processes: Processes) -> None:
    first = processes.rank == 0
    if options.json is not None and options.json.is_dir():
        raise DataError(f"--json {options.json} is a folder, expected a file to write")
    if options.json is not None:
        refuse_unwritable(options.json)
    detector = decide_at(options.model, options.device, options.false_alarm_rate)
    dataset = open_dataset(options.data, "test", detector.provenance.image_size, category=options.category)
    check_labels(dataset)
    if first:
        warn_of_leaks(options.data, options.category)
        verified(dataset)
    processes.gather_all(None)
    scored = results(detector, dataset, batch_size=options.batch_size, workers=options.workers, processes=processes)
    own = sum(map(len, dealt_batches(len(dataset), options.batch_size, processes).batches))
    found = summarize(track(scored, "scoring", own) if first else scored, processes)
    if not first:
        return
    figures = found.as_dict()
    print_table(
        f"{options.model} on {options.data}",
        ("images", "defects", *METRICS.values()),
        [(str(found.images), str(found.anomalous_images), *(percent(figures[name]) for name in METRICS))],
    )
    if detector.false_alarm_rate is not None:
        print_table(
            "decisions, in per cent of the images",
            ("calibrated rate", *RATES.values()),
            [(percent(detector.false_alarm_rate), *(percent(figures[name]) for name in RATES))],
        )
    if options.json is not None:
        figures = {**figures, "calibrated_false_alarm_rate": detector.false_alarm_rate}
        origin = {"model": str(options.model), "data": str(options.data), "versions": versions()}
        write_atomic(options.json, json.dumps({**figures, **origin}, indent=2) + "\n")
        say(f"wrote {options.json}")


def percent(value: float | None) -> str:
    """A fraction as the tables of papers show it; a dash where it is not known.

    >>> percent(0.98764), percent(None)
    ('98.76', '-')
    """
    return "-" if value is None else f"{100 * value:.2f}"


def versions() -> dict[str, str]:
    """What the figures depend on."""
    names = ("torch", "torchvision", "timm", "numpy", "pillow", "scipy")
    return {
        "semflow": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
    }
