"""`semflow predict`: score images and write scores, heat maps, raw maps and a report into a folder."""

import copy
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from semflow._validation import counted
from semflow._version import __version__
from semflow.app.report import save_map
from semflow.data import ImageDataset, open_dataset
from semflow.detectors import DriftTest, Predictor
from semflow.detectors.collapse import collapsed
from semflow.errors import ConfigError, DataError
from semflow.files import hash_file, hash_parts, refuse_occupied
from semflow.files.resumable import Unfinished, resumable_folder
from semflow.training import ImageResult, results
from semflow.training.evaluation import images_at_once
from semflow.training.workers import loader

from .console import decided, say, track, write_png
from .drift import open_drift, record_drift
from .halves import in_halves
from .inputs import TESTS, advise, exit_code, fingerprint, load_detector, note_of, reading, rows_of, with_pages
from .loaded import Images, Loaded, Samples
from .options import Predict
from .overlapping import ahead, behind
from .tables import TABLES, Record, write_tables
from .tiling import check_tiles
from .views import FOLDERS, save_overlay, save_views

LONGEST_NAME = 200
OUTPUTS = (*Record.__dataclass_fields__, *FOLDERS)
Written: TypeAlias = tuple[Record, list[str]]
"""Record of an image, and its files relative to the folder."""


def run(options: Predict) -> int:
    """Score the images. The output folder appears when it is complete; an interrupted command continues."""
    if options.watch is not None:
        from .watch import watch  # which uses this module

        return watch(options, options.watch)
    if options.move_to is not None:
        raise ConfigError(f"--move-to must be left out without --watch, but got {options.move_to}")
    if options.input is None:
        raise ConfigError("--input must be an image or a folder of images, but got none; or give --watch FOLDER")
    if not (options.output / "scores.json").is_file():
        refuse_occupied(options.output)
    advise(options.input, "--input")
    with ThreadPoolExecutor(1) as hashing:
        of_model = hashing.submit(fingerprint, options.model)  # while it is loaded, which takes longer
        loaded = load_detector(options.model, options.device, options.false_alarm_rate, options.category)
        detector = in_halves(loaded)
        model = of_model.result()
    category = () if options.category is None else (options.category,)
    origin = hash_parts(  # of everything but the images that determines the outputs
        (__version__, model, options.map_format, str(options.false_alarm_rate), *OUTPUTS, *category)
    )
    check_tiles(options, detector.provenance)
    test = open_drift(options.drift, detector, options.model, model, options.category) if options.drift else None
    size, read = detector.provenance.loaded_size, reading(detector, options.region)
    dataset = with_pages(_without_output(open_dataset(options.input, "predict", size, **read), options.output))
    names = image_names(dataset)
    _check_places(names)
    paths = track(dataset.paths, "reading images", len(names), terminal_only=True)
    sources = {name: _hash_file(Path(path)) for name, path in zip(names, paths, strict=True)}
    for name, path in zip(names, dataset.paths, strict=True) if dataset.regions else ():
        sources[name] = hash_parts((sources[name], _hash_file(dataset.regions[Path(path)])))
    passed_over = note_of(dataset.passed_over, dataset.root)
    digest = hash_parts(part for source in sources.items() for part in source)
    about: dict[str, Any] = {"origin": origin, "sources": digest}
    finished = _finished_output(options.output, about)
    if finished is not None:
        if finished["left_out"] and options.on_error == "stop":
            raise DataError(finished["left_out"][0]["reason"])
        say(f"{options.output} is already complete for this model and these images{passed_over}")
        _say_decisions([image["is_anomalous"] for image in finished["images"]], detector.false_alarm_rate)
        _record_drift(options, test, [Record(**image) for image in finished["images"]], sources)
        return exit_code(dataset.passed_over)
    with resumable_folder(options.output, origin) as work:
        for name, entry in list(work.done.items()):
            if entry["source"] != sources.get(name):
                work.drop(name)
        if work.done:
            say(f"continuing: {len(work.done)} of {len(names)} image{' is' if len(names) == 1 else 's are'} done")
        left_out = _score(options, detector, dataset, sources, work)
        if not work.done:
            raise DataError(
                f"{options.input} must contain a readable image, but got none in {len(names)}; the first error: "
                f"{left_out[names[0]]}"
            )
        records = [Record(**work.done[name]["record"]) for name in names if name in work.done]
        about["passed_over"] = rows_of(dataset.passed_over, dataset.root)
        write_tables(work.folder, options, detector, records, left_out, about, _labels(options.input, dataset))
        work.tidy(TABLES)
    for name, reason in left_out.items():
        print(f"skipped {name!r}: {reason}", file=sys.stderr)
    highest = max(records, key=lambda record: record.score)
    skipped = f", skipped {len(left_out)}" if left_out else ""
    first = f"the most anomalous is {highest.image} ({highest.score:.4f})"
    say(f"scored {counted(len(records), 'image')}{skipped}; {first}{passed_over}")
    _say_decisions([record.is_anomalous for record in records], detector.false_alarm_rate)
    if len({sources[record.image] for record in records}) > 1:
        same = collapsed(torch.tensor([record.score for record in records]))
        if same:
            print(
                f"caution: scores must differ between images, but got {same}; the model has collapsed, or all images "
                "are far from those of training",
                file=sys.stderr,
            )
    _record_drift(options, test, records, sources)
    for name in TABLES:
        say(f"wrote {options.output / name}")
    return exit_code(dataset.passed_over)


def _record_drift(
    options: Predict, test: DriftTest | None, records: Sequence[Record], sources: Mapping[str, str]
) -> None:
    """Add the images to the test of drift, by the digests of their files."""
    if test is not None and options.drift is not None:
        p_values = [record.p_value or 0.0 for record in records]
        names = [sources[record.image] for record in records]
        record_drift(test, options.drift, [record.score for record in records], p_values, names)


def _say_decisions(decisions: Sequence[bool | None], rate: float | None) -> None:
    """Print how many images are called anomalous, if the model is calibrated."""
    if rate is not None:
        say(decided(sum(decision is True for decision in decisions), len(decisions), rate))


def _score(
    options: Predict, detector: Predictor, dataset: ImageDataset, sources: dict[str, str], work: Unfinished
) -> dict[str, str]:
    """Score the images that are not done and record each one. Return the errors of skipped images."""
    left_out: dict[str, str] = {}
    images = Images(dataset, [(index, name) for index, name in enumerate(sources) if name not in work.done])
    overlap = detector.provenance.tiles is None  # with tiles, an image may be so large that there is room for one
    read = loader(images, list, options.workers, batch_size=images_at_once(detector, options.batch_size))

    def scored(batches: Iterable[list[tuple[str, Loaded | str]]]) -> Iterator[Sequence[Callable[[], Written | None]]]:
        for batch in batches:
            broken = {name: image for name, image in batch if isinstance(image, str)}
            if broken and options.on_error == "stop":
                raise DataError(next(iter(broken.values())))
            left_out.update(broken)
            readable = {name: image for name, image in batch if not isinstance(image, str)}
            yield [*score_images(work.folder, options, detector, readable), *[lambda: None] * len(broken)]

    with (
        closing(ahead(read, overlap and not options.workers)) as batches,
        closing(behind(scored(batches), overlap)) as written,
    ):
        for done in track(written, "scoring", len(images)):
            if done is not None:
                record, files = done
                work.add(record.image, {"record": asdict(record), "source": sources[record.image]}, files)
    return left_out


def score_images(
    folder: Path, options: Predict, detector: Predictor, images: Mapping[str, Loaded]
) -> list[Callable[[], Written]]:
    """Score images by their names, and return a call of `write_image` for each one."""
    samples = Samples(list(images.items()))
    found = results(detector, samples, batch_size=options.batch_size) if images else ()
    return [
        partial(write_image, folder, options, detector, name, image, result)
        for (name, image), result in zip(images.items(), found, strict=True)
    ]


def write_image(
    folder: Path, options: Predict, detector: Predictor, name: str, image: Loaded, result: ImageResult
) -> Written:
    """Write the files of an image. Return its record and the file names relative to the folder."""
    _, score, anomaly_map, p_value, is_anomalous, mask = result
    anomaly_map = anomaly_map[image.box.slices].contiguous()  # without padding
    mask = None if mask is None else mask[image.box.slices].contiguous()
    if not np.isfinite(score):
        raise ConfigError(f"score of {name} must be finite, but got {score}; train the model {options.model} again")
    place = _shortened(name)
    heat, raw = f"overlays/{place}.png", f"maps/{place}.{'npy' if options.map_format == 'npy' else 'png'}"
    files = [heat, raw]
    if options.watch is None:  # which has no page
        files += save_views(folder, place, image.picture, anomaly_map, detector.map_range)
    save_overlay(folder / heat, image.picture, anomaly_map, detector.map_range, mask)
    save_map(folder / raw, anomaly_map)
    if options.map_format == "png16":
        files.append(f"{raw}.json")
    mask_file = None
    if mask is not None:
        mask_file = f"masks/{place}.png"
        files.append(mask_file)
        write_png(folder / mask_file, Image.fromarray(mask.numpy().astype(np.uint8) * 255))
    return Record(name, score, heat, raw, *image.size, p_value, is_anomalous, mask_file), files


def _labels(given: Path, dataset: ImageDataset) -> dict[str, int]:
    """Return the labels of the images of a test set, by name: those that `semflow evaluate` would use."""
    if dataset.root is None or dataset.root.name not in TESTS:
        return {}
    try:
        tests = open_dataset(given, "test")
    except (ConfigError, DataError):
        return {}
    labels = dict(zip(tests.paths, tests.labels, strict=True))
    return {name: labels.get(path, -1) for name, path in zip(image_names(dataset), dataset.paths, strict=True)}


def _without_output(dataset: ImageDataset, output: Path) -> ImageDataset:
    """Leave out images inside the output folder, which may be inside the input folder."""
    root, output = dataset.root, output.resolve()
    if root is None or root.resolve() not in output.parents:
        return dataset
    inside = root / output.relative_to(root.resolve())
    others = copy.copy(dataset)
    others.records = tuple(record for record in dataset.records if inside not in record.path.parents)
    if not others.records:
        raise DataError(f"{root} must contain images outside the output {output}, but got none")
    return others


def _shortened(name: str) -> str:
    """Shorten the last part of a name, so that it stays below the system's 255 bytes with the suffixes of outputs."""
    folder, slash, last = name.rpartition("/")
    if len(os.fsencode(last)) <= LONGEST_NAME:
        return name
    mark = hash_parts([last])[:16]
    start = os.fsencode(last)[: LONGEST_NAME - len(mark) - 1].decode("utf-8", "ignore")
    return f"{folder}{slash}{start}~{mark}"


def image_names(dataset: ImageDataset) -> list[str]:
    """Return the image paths relative to the input folder. They keep their suffixes, so a.png and a.jpg differ."""
    paths, root = [Path(path) for path in dataset.paths], dataset.root
    return [path.name if root is None else path.relative_to(root).as_posix() for path in paths]


def _check_places(names: Sequence[str]) -> None:
    """Raise DataError if the outputs of an image would need the name of a folder of other outputs."""
    owners = {f"{_shortened(name)}{suffix}": name for name in names for suffix in (".png", ".npy", ".jpg")}
    for name in names:
        for folder in PurePosixPath(name).parents:
            if (other := owners.get(str(folder))) is not None:
                raise DataError(
                    f"{name} must be in a folder that is not {other} with a suffix, but got both; rename one"
                )


def _hash_file(path: Path) -> str:
    """Hash the content of a file; for an unreadable file return the error number."""
    try:
        return hash_file(path)
    except OSError as error:
        return f"none: {error.errno}"


def _finished_output(output: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """Return scores.json if the output folder is what this command would write."""
    try:
        written: dict[str, Any] = json.loads((output / "scores.json").read_bytes())
        same = all(written[name] == value for name, value in about.items())
        return written if same and all(image["reason"] for image in written["left_out"]) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
