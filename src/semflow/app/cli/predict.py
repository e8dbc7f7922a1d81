"""`semflow predict`: images to scores, heat maps, raw maps and a page, in a folder that is complete or not there."""

__all__ = ["run"]

import copy
import io
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Subset

from semflow._version import __version__
from semflow.app.report import contour, overlay, save_map
from semflow.data import ImageDataset, decode_image, open_dataset
from semflow.detectors import Predictor
from semflow.errors import ConfigError, DataError
from semflow.files import hash_file, hash_parts, refuse_occupied, write_atomic
from semflow.files.resumable import Unfinished, resumable_folder
from semflow.training import ImageResult, results

from .calibrate import decide_at
from .console import say, track
from .inputs import fingerprint, readable
from .options import Predict
from .prediction import TABLES, Record, write_tables

SUFFIX = {"npy": ".npy", "png16": ".png"}
LONGEST_NAME = 200


def run(options: Predict) -> None:
    """Check the images, score them, and let the output folder appear.

    What a killed process has finished of the same folder, with the same model and of the same images, is not done
    again.
    """
    if not (options.output / "scores.json").is_file():
        refuse_occupied(options.output)
    origin = _origin(options)
    detector = decide_at(options.model, options.device, options.false_alarm_rate)
    dataset = _without(options.output, open_dataset(options.input, "predict", detector.provenance.image_size))
    names = _names(dataset)
    made = _complete(options.output, origin, dataset, names)
    if made is not None:
        if made["left_out"] and options.on_error == "stop":
            raise DataError(made["left_out"][0]["reason"])
        say(f"{options.output} is complete already, of the same model and images")
        return
    left_out: dict[int, str] | None = {} if options.on_error == "skip" else None
    with resumable_folder(options.output, origin) as work:
        todo = _todo(work, dataset, names)
        if work.done:
            say(f"going on: {len(work.done)} of {len(names)} images are done already")
        todo = readable(dataset, todo, left_out)
        if not todo and not work.done:
            first = "" if not left_out else f"; the first: {left_out[min(left_out)]}"
            raise DataError(f"{options.input}: expected an image that can be read, but none of {len(names)} can{first}")
        while todo:
            try:
                _score(options, detector, dataset, names, todo, work)
                todo = []
            except DataError:
                if left_out is None:
                    raise
                remaining = [index for index in todo if names[index] not in work.done]
                todo = readable(dataset, remaining, left_out)
                if len(todo) == len(remaining):  # no image has become unreadable since it was checked
                    raise
        records = [Record(**work.done[name]["record"]) for name in names if name in work.done]
        reasons = {names[index]: reason for index, reason in sorted((left_out or {}).items())}
        about = {"origin": origin, "sources": _sources(dataset, names, work)}
        write_tables(work.folder, options, records, reasons, detector.map_range, about, detector.false_alarm_rate)
        work.tidy(TABLES)
    for name, reason in reasons.items():
        print(f"left out {name!r}: {reason}", file=sys.stderr)
    highest = max(records, key=lambda record: record.score)
    without = f", left out {len(reasons)}" if reasons else ""
    say(f"scored {len(records)} images{without}; the most anomalous is {highest.image} ({highest.score:.4f})")
    for name in TABLES:
        say(f"wrote {options.output / name}")


def _score(
    options: Predict, detector: Predictor, dataset: ImageDataset, names: list[str], todo: list[int], work: Unfinished
) -> None:
    """Score some of the images; each is noted when all of its files are there."""
    scored = results(detector, Subset(dataset, todo), batch_size=options.batch_size, workers=options.workers)
    for index, result in zip(todo, track(scored, "scoring", len(todo)), strict=True):
        record, files = _finish_image(work.folder, options, detector, names[index], result)
        source = _hash(Path(result.sample.path))
        work.add(names[index], {"record": asdict(record), "source": source}, files)


def _finish_image(
    folder: Path, options: Predict, detector: Predictor, name: str, result: ImageResult
) -> tuple[Record, list[str]]:
    """Write the files of an image; its record, and their names relative to the folder."""
    sample, score, anomaly_map, p_value, is_anomalous, mask = result
    if not np.isfinite(score):
        raise ConfigError(f"{sample.path}: its score is {score}; the model {options.model} is broken, fit it again")
    place = _shortened(name)
    heat = PurePosixPath("overlays", f"{place}.png")
    raw = PurePosixPath("maps", place + SUFFIX[options.map_format])
    marked = None if mask is None else PurePosixPath("masks", f"{place}.png")
    original = decode_image(sample.path)
    mask_file = None if marked is None else str(marked)
    record = Record(name, score, str(heat), str(raw), *original.size, p_value, is_anomalous, mask_file)
    _save_overlay(folder / heat, original.resize(record.overlay_size), anomaly_map, detector.map_range, mask)
    save_map(folder / raw, anomaly_map)
    if mask is not None and marked is not None:
        _save_picture(folder / marked, Image.fromarray(mask.numpy().astype(np.uint8) * 255))
    scale = [f"{raw}.json"] if options.map_format == "png16" else []
    return record, [str(heat), str(raw), *scale, *([] if marked is None else [str(marked)])]


def _without(output: Path, dataset: ImageDataset) -> ImageDataset:
    """All images but those in the output, which may lie in the input: a repeated command finds its own there."""
    root, output = getattr(dataset, "root", None), output.resolve()
    if root is None or root.resolve() not in output.parents:
        return dataset
    within = root / output.relative_to(root.resolve())
    others = copy.copy(dataset)
    others.records = tuple(record for record in dataset.records if within not in record.path.parents)
    if not others.records:
        raise DataError(f"{root}: expected images, but it holds only those of the output {output}; check the path.")
    return others


def _shortened(name: str) -> str:
    """A name that leaves room for the endings of the outputs: systems take 255 bytes at most."""
    folder, slash, last = name.rpartition("/")
    if len(os.fsencode(last)) <= LONGEST_NAME:
        return name
    mark = hash_parts([last])[:16]
    start = os.fsencode(last)[: LONGEST_NAME - len(mark) - 1].decode("utf-8", "ignore")
    return f"{folder}{slash}{start}~{mark}"


def _names(dataset: ImageDataset) -> list[str]:
    """Names relative to the input, with their endings, so that a.png and a.jpg stay apart."""
    root = getattr(dataset, "root", None)
    paths = [Path(path) for path in dataset.paths]
    return [path.relative_to(root).as_posix() if root is not None else path.name for path in paths]


def _save_overlay(
    path: Path,
    picture: Image.Image,
    anomaly_map: torch.Tensor,
    value_range: tuple[float, float],
    mask: torch.Tensor | None = None,
) -> None:
    """The heat over a picture, and the outline of the mask: stretched as it was squeezed when it became a square."""
    pixels = np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / 255.0
    enlarged = torch.nn.functional.interpolate(
        anomaly_map[None, None], size=(picture.height, picture.width), mode="bilinear", align_corners=False
    )[0, 0]
    heat = overlay(pixels, enlarged, value_range)
    _save_picture(path, heat if mask is None else contour(heat, mask))


def _save_picture(path: Path, picture: Image.Image) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())


def _origin(options: Predict) -> str:
    """What makes the outputs of an image what they are, besides the image."""
    rate = str(options.false_alarm_rate)
    parts = [__version__, fingerprint(options.model), options.map_format, rate, *Record.__dataclass_fields__]
    return hash_parts(parts)


def _hash(path: Path) -> str:
    """Of a file's content; of one that cannot be read, its lack."""
    try:
        return hash_file(path)
    except OSError as error:
        return f"none: {error.errno}"


def _todo(work: Unfinished, dataset: ImageDataset, names: list[str]) -> list[int]:
    """The images that are not done: new ones, and those whose file is another one by now."""
    paths = dict(zip(names, dataset.paths, strict=True))
    for name in list(work.done):
        if name not in paths or _hash(Path(paths[name])) != work.done[name]["source"]:
            work.drop(name)
    return [index for index, name in enumerate(names) if name not in work.done]


def _sources(dataset: ImageDataset, names: list[str], work: Unfinished | None = None) -> str:
    """A hash of the names and contents of all images; what is done has been read already."""
    parts: list[str] = []
    done = {} if work is None else work.done
    for name, path in zip(names, dataset.paths, strict=True):
        source = done[name]["source"] if name in done else _hash(Path(path))
        parts += [name, source]
    return hash_parts(parts)


def _complete(output: Path, origin: str, dataset: ImageDataset, names: list[str]) -> dict[str, Any] | None:
    """scores.json, if the output is there as this very command makes it: it may have been killed right at its end."""
    try:
        made: dict[str, Any] = json.loads((output / "scores.json").read_text(encoding="utf-8"))
        same = made["origin"] == origin and made["sources"] == _sources(dataset, names)
        return made if same and all(left["reason"] for left in made["left_out"]) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
