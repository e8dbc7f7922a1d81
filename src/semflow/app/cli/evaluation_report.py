"""Report of `semflow evaluate`: a folder with a page, its pictures and the scores."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from semflow._version import __version__
from semflow.app.report import Entry, Table, View, contour, render_page
from semflow.data import ImageDataset
from semflow.data.decoding import in_rgb
from semflow.data.resizing import placement
from semflow.data.walking import relative
from semflow.detectors import Predictor
from semflow.errors import ConfigError
from semflow.files import refuse_occupied, staged_folder, write_atomic
from semflow.metrics import HistogramAccumulator
from semflow.metrics.regions import split_pixels
from semflow.training import ImageResult, Processes

from .tables import COLORS, DECISIONS, TRUTHS
from .views import TRUTH_COLOR, save_overlay, save_views, shown_size, view_file, view_links, write_jpeg

PAGE, SCORES = "index.html", "evaluation.json"
FPR_LIMIT, POINTS = 0.3, 200  # of the PRO curve: its end, and the points that are drawn


def check_place(folder: Path) -> None:
    """Raise an error unless a report can be written there: a new or empty folder, or one with an earlier report."""
    if folder.suffix.lower() in (".html", ".htm") and not folder.is_dir():
        raise ConfigError(
            f"--report must be a folder for {PAGE} and its pictures, but got {folder}; use {folder.with_suffix('')}"
        )
    refuse_occupied(folder, SCORES)


@contextmanager
def report_of(
    folder: Path | None, detector: Predictor, dataset: ImageDataset, processes: Processes
) -> "Iterator[Report | None]":
    """Create a report at `folder`, which appears when the block succeeds; None without a folder.

    All processes write their pictures into the same hidden folder.
    """
    if folder is None:
        yield None
    elif processes.rank == 0:
        with staged_folder(folder, replaces=SCORES) as stage:
            yield Report(processes.gather_all(stage)[0], detector, dataset, processes)
    else:
        yield Report(processes.gather_all(folder)[0], detector, dataset, processes)


class Report:
    """Pictures, scores and PRO curve of results, collected while they pass."""

    def __init__(self, folder: Path, detector: Predictor, dataset: ImageDataset, processes: Processes) -> None:
        self._folder, self._detector, self._dataset, self._processes = folder, detector, dataset, processes
        self._numbers = {path: number for number, path in enumerate(dataset.paths)}
        self._entries: list[tuple[int, Entry]] = []
        self._pixels, self._masked = HistogramAccumulator(), True

    def watch(self, results: Iterable[ImageResult]) -> Iterator[ImageResult]:
        """Yield the results after adding them."""
        for result in results:
            self._add(result)
            yield result

    def _add(self, result: ImageResult) -> None:
        sample, truth = result.sample, result.sample.anomaly_mask
        number = self._numbers[sample.path]
        picture, place = self._dataset.read_image(number), f"{number:06d}"
        box = placement(picture.size, self._dataset.size_of(picture.size), self._dataset.resize).slices
        anomaly_map = result.anomaly_map[box].contiguous()  # without padding
        mask, truth = (None if x is None else x[box].contiguous() for x in (result.mask, truth))
        picture = in_rgb(picture.resize(shown_size(*picture.size)))
        views: list[View] = ["original", "overlay", "map"]
        save_views(self._folder, place, picture, anomaly_map, self._detector.map_range)
        overlay = self._folder / view_file("overlay", place)
        save_overlay(overlay, picture, anomaly_map, self._detector.map_range, mask)
        if truth is not None and truth.any():
            views.append("truth")
            write_jpeg(self._folder / view_file("truth", place), contour(picture, truth, TRUTH_COLOR))
        if truth is None:
            self._masked = False
        else:
            self._pixels.add(split_pixels(anomaly_map, truth, anomaly_map > -np.inf))
        entry = Entry(
            relative(Path(sample.path), self._dataset.root), result.score, picture.size, view_links(place, views),
            result.p_value, result.is_anomalous, sample.label,
        )  # fmt: skip
        self._entries.append((number, entry))

    def write(self, title: str, tables: Mapping[str, Table], content: Mapping[str, Any]) -> None:
        """Write page and scores in the first process; called by all."""
        parts = self._processes.gather_all((self._entries, self._pixels, self._masked))
        if self._processes.rank:
            return
        entries = [entry for _, entry in sorted((pair for part in parts for pair in part[0]), key=lambda pair: pair[0])]
        pixels = HistogramAccumulator(self._pixels.bits)
        pixels.merge(part[1] for part in parts)
        scores = [
            {"image": entry.name, "label": entry.label, "score": entry.score, "p_value": entry.p_value,
             "is_anomalous": entry.is_anomalous, "original": entry.views["original"]}
            for entry in entries
        ]  # fmt: skip
        write_atomic(self._folder / SCORES, json.dumps({"semflow": __version__, **content, "scores": scores}, indent=2))
        lines = [f"A higher score is more anomalous. Metrics are in percent. {COLORS}", TRUTHS]
        rate = self._detector.false_alarm_rate
        if rate is not None:
            lines.append(DECISIONS)
        notes = [f"Passed over {item['path']}: {item['reason']}" for item in content["passed_over"]]
        page = render_page(
            title, entries, lines=lines, notes=notes, tables=list(tables.values()), rate=rate,
            pro=_pro(pixels) if all(part[2] for part in parts) else (), worst_first=True,
        )  # fmt: skip
        write_atomic(self._folder / PAGE, page)


def _pro(pixels: HistogramAccumulator) -> list[tuple[float, float]]:
    """Return false-positive rate and mean overlap up to FPR_LIMIT, at increasing rates."""
    if not (pixels.normal.any() and pixels.anomalous.any()):
        return []
    x, y = (np.concatenate(([0.0], counts[::-1].cumsum() / counts.sum())) for counts in (pixels.normal, pixels.weights))
    rates = FPR_LIMIT * np.linspace(0.0, 1.0, POINTS) ** 2  # closer where the curve is steep
    return list(zip(rates.tolist(), np.interp(rates, x, y).tolist(), strict=True))
