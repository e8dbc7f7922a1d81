"""`semflow evaluate`: compute the metrics of a detector on a labeled test set."""

import json
import platform
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from semflow._validation import counted
from semflow._version import __version__
from semflow.app.report import Table
from semflow.data import Categories, ImageDataset, categories_in, open_dataset
from semflow.data.walking import relative
from semflow.detectors import Predictor, Provenance
from semflow.errors import ConfigError, DataError
from semflow.files import refuse_unwritable, write_atomic
from semflow.training import Evaluation, Processes, check_labels, results, summarize
from semflow.training.categories import deciding_for
from semflow.training.evaluation import images_at_once
from semflow.training.loading import dealt_batches
from semflow.training.measures import Measures

from .console import print_table, say, track
from .evaluation_report import PAGE, Report, check_place, report_of
from .halves import in_halves
from .inputs import (
    advise,
    cache_small,
    check_images,
    exit_code,
    launched,
    load_detector,
    names_of,
    note_of,
    reading,
    rows_of,
    warn_of_leaks,
    with_pages,
)
from .options import Evaluate
from .tiling import check_tiles

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
    if options.report is not None:
        check_place(options.report)
    advise(options.data, "--data")
    with launched(options.device) as (processes, _):
        detector = in_halves(load_detector(options.model, options.device, options.false_alarm_rate))
        check_tiles(options, detector.provenance)
        size, read = detector.provenance.loaded_size, reading(detector, options.region)
        names = _names(options, detector.provenance)
        dataset = with_pages(open_dataset(options.data, "test", size, **names, **read))
        parts = dataset.parts if isinstance(dataset, Categories) else {options.category or "": dataset}
        _check_decisions(options, detector.provenance, parts)
        measures = {name: Measures(options.metrics, detector, part, len(part)) for name, part in parts.items()}
        if processes.rank == 0:
            warn_of_leaks(options.data, **names)
            cache_small(dataset, options.workers)
            for part in parts.values():
                check_labels(part)
                part.cache = dataset.cache
                check_images(part)
        processes.gather_all(None)  # wait for the check
        with report_of(options.report, detector, dataset, processes) as report:
            each = {}
            for name, part in parts.items():
                with deciding_for(detector, name):
                    each[name] = _evaluate(options, detector, part, processes, report, measures[name])
            found = Evaluation.mean([*each.values()])
            tables = _tables(options, each if names["categories"] else {}, found, detector.false_alarm_rate)
            content = _content(options, found, dataset, detector.false_alarm_rate)
            if names["categories"]:
                content["categories"] = {name: part.as_dict() for name, part in each.items()}
            if report is not None:
                report.write(f"Evaluation of {options.model} on {options.data}", tables, content)
        if processes.rank == 0:
            _say(options, found, dataset, tables, content)
        return exit_code(dataset.passed_over) if processes.count == 1 else 0  # torchrun takes others for failures


def _evaluate(
    options: Evaluate,
    detector: Predictor,
    dataset: ImageDataset,
    processes: Processes,
    report: Report | None,
    measures: Measures,
) -> Evaluation:
    first = processes.rank == 0
    scored = results(detector, dataset, batch_size=options.batch_size, workers=options.workers, processes=processes)
    scored = scored if report is None else report.watch(scored)
    at_once = images_at_once(detector, options.batch_size)
    own = sum(map(len, dealt_batches(len(dataset), at_once, processes).batches))
    return summarize(track(scored, "scoring", own) if first else scored, processes, measures)


def _names(options: Evaluate, made: Provenance) -> dict[str, Any]:
    """Return what is evaluated, as arguments of `open_dataset`: by default the categories of the model."""
    names = names_of(options)
    if not (options.category or options.categories) and made.categories:
        there = {*categories_in(options.data, "test"), *(x for x in made.categories if (options.data / x).is_dir())}
        names["categories"] = made.categories if there.issuperset(made.categories) else None
    return names


def _check_decisions(options: Evaluate, made: Provenance, names: Iterable[str]) -> None:
    """Raise ConfigError if an exported file decides for another category than those that are evaluated."""
    others = sorted({*names} - {"", *made.categories})
    if options.model.is_file() and made.categories and others:
        raise ConfigError(
            f"--categories must be {made.categories[0]} for the exported file {options.model}, which decides for this "
            f"category, but got {', '.join(others)}"
        )


def _tables(
    options: Evaluate, each: Mapping[str, Evaluation], mean: Evaluation, rate: float | None
) -> dict[str, Table]:
    """Return the tables by title, with a row for each category and one for the mean."""
    start = ("category",) if each else ()

    def table(header: Iterable[str], row: Callable[[Evaluation], Iterable[str]]) -> Table:
        rows = ((*((name,) if each else ()), *row(found)) for name, found in [*each.items(), ("mean", mean)])
        return Table((*start, *header), tuple(rows))

    def of_images(found: Evaluation) -> tuple[str, ...]:
        return str(found.images), str(found.anomalous_images), *(percent(found.as_dict()[name]) for name in METRICS)

    tables = {f"{options.model} on {options.data}": table(("images", "defects", *METRICS.values()), of_images)}
    if mean.further:
        tables["further metrics, percent"] = table(mean.further, lambda found: map(percent, found.further.values()))
    if rate is not None:
        tables["decisions, percent of the images"] = table(
            ("calibrated rate", *RATES.values()),
            lambda found: (percent(rate), *(percent(found.as_dict()[name]) for name in RATES)),
        )
    return tables


def _content(options: Evaluate, found: Evaluation, dataset: ImageDataset, rate: float | None) -> dict[str, Any]:
    """Return the content of the JSON file."""
    passed_over = rows_of(dataset.passed_over, dataset.root)
    origin = {"model": str(options.model), "data": str(options.data), "versions": versions()}
    of_images = found.aupimo_of_images
    single = (
        {}
        if of_images is None
        else {"aupimo_of_images": {relative(Path(path), dataset.root): value for path, value in of_images.items()}}
    )
    return {**found.as_dict(), **single, "calibrated_false_alarm_rate": rate, "passed_over": passed_over, **origin}


def _say(
    options: Evaluate,
    found: Evaluation,
    dataset: ImageDataset,
    tables: Mapping[str, Table],
    content: Mapping[str, Any],
) -> None:
    for title, table in tables.items():
        print_table(title, table.header, table.rows)
    if dataset.passed_over:
        say(f"evaluated {counted(found.images, 'image')}{note_of(dataset.passed_over, dataset.root)}")
    if options.json is not None:
        write_atomic(options.json, json.dumps(content, indent=2) + "\n")
        say(f"wrote {options.json}")
    if options.report is not None:
        say(f"wrote {options.report / PAGE}")


def percent(value: float | None) -> str:
    """Format a fraction as percent, or as a dash if it is None."""
    return "-" if value is None else f"{100 * value:.2f}"


def versions() -> dict[str, str]:
    """Return the versions of semflow, Python and the libraries on which the metrics depend."""
    others = {name: metadata.version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow", "scipy")}
    return {"semflow": __version__, "python": platform.python_version(), **others}
