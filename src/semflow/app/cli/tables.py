"""Tables of `semflow predict`: scores.csv, scores.json and index.html."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from semflow._version import __version__
from semflow.app.report import Entry, render_page
from semflow.detectors import Predictor
from semflow.files import write_atomic

from .console import decided
from .options import Predict
from .views import shown_size, view_links

COLORS = (
    "All heat maps share one color scale, set by normal images: uncolored pixels are normal, pale yellow pixels are "
    "far from normal."
)
DECISIONS = (
    "p is the share of good images that are at least as anomalous. The cyan outline marks pixels above the "
    "calibrated threshold of pixels, which the threshold of images below does not change."
)
TRUTHS = "The green outline marks labeled defects."
TABLES = ("scores.csv", "scores.json", "index.html")


@dataclass(frozen=True)
class Record:
    """One image's row in scores.csv and scores.json. Paths are relative to the output folder.

    Width and height are those of the image; the anomaly map and the mask have the detector's image
    size, or that of the image within it if images are padded. The last three
    fields are None if the model is not calibrated.
    """

    image: str
    score: float
    overlay: str
    map: str
    width: int
    height: int
    p_value: float | None = None
    is_anomalous: bool | None = None
    mask: str | None = None


def write_tables(
    folder: Path,
    options: Predict,
    detector: Predictor,
    records: Sequence[Record],
    left_out: Mapping[str, str],
    about: Mapping[str, Any],
    labels: Mapping[str, int],
) -> None:
    """Write the three files of the images and of the errors of skipped ones.

    `about` is added to scores.json. `labels` are those of a test set by name, for the page.
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(Record.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(record) for record in records)
    write_atomic(folder / "scores.csv", table.getvalue())
    content = {
        "semflow": __version__,
        "model": str(options.model),
        "input": str(options.input),
        "map_format": options.map_format,
        "map_range": list(detector.map_range),
        "false_alarm_rate": detector.false_alarm_rate,
        **about,
        "images": [asdict(record) for record in records],
        "left_out": [{"image": name, "reason": reason} for name, reason in left_out.items()],
    }
    write_atomic(folder / "scores.json", json.dumps(content, indent=2) + "\n")
    entries = [_entry(record, labels.get(record.image, -1)) for record in records]
    page = _page(options, entries, left_out, about["passed_over"], detector.false_alarm_rate)
    write_atomic(folder / "index.html", page)


def _page(
    options: Predict,
    entries: Sequence[Entry],
    left_out: Mapping[str, str],
    passed_over: Sequence[Mapping[str, str]],
    rate: float | None,
) -> str:
    lines = [f"Model: {options.model}. A higher score is more anomalous. {COLORS}"]
    if rate is not None:
        anomalous = sum(entry.is_anomalous is True for entry in entries)
        decision = decided(anomalous, len(entries), rate)
        lines.append(
            f"{decision[0].upper()}{decision[1:]} on average, for images like the calibration images. {DECISIONS}"
        )
    notes = [f"Skipped {name}: {reason}" for name, reason in left_out.items()]
    notes += [f"Passed over {item['path']}: {item['reason']}" for item in passed_over]
    return render_page(f"Anomaly scores of {options.input}", entries, lines=lines, notes=notes, rate=rate)


def _entry(record: Record, label: int) -> Entry:
    place = record.overlay.removeprefix("overlays/").removesuffix(".png")
    return Entry(
        record.image, record.score, shown_size(record.width, record.height),
        view_links(place, ("original", "overlay", "map")), record.p_value, record.is_anomalous, label,
    )  # fmt: skip
