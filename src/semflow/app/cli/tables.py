"""Tables of `semflow predict`: scores.csv, scores.json and index.html."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from semflow._validation import counted
from semflow._version import __version__
from semflow.app.report import Entry, Picture, Section, link, render_page
from semflow.detectors import Predictor
from semflow.files import write_atomic

from .console import decided
from .options import Predict

TABLES = ("scores.csv", "scores.json", "index.html")
LONGEST_SIDE = 1024


@dataclass(frozen=True)
class Record:
    """One image's row in scores.csv and scores.json. Paths are relative to the output folder.

    Width and height are those of the image. The anomaly map and the mask have the detector's image size, that of the
    image within it if images are padded, or with tiles the image's. The last three fields are None if the model is not
    calibrated.
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


def overlay_size(width: int, height: int) -> tuple[int, int]:
    """Return width and height of an image's overlay: the same proportions, at most LONGEST_SIDE pixels long."""
    scale = min(1.0, LONGEST_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def write_tables(
    folder: Path,
    options: Predict,
    detector: Predictor,
    records: Sequence[Record],
    left_out: Mapping[str, str],
    about: Mapping[str, Any],
) -> None:
    """Write the three files of the images and of the errors of skipped ones; `about` is added to scores.json."""
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
    write_atomic(
        folder / "index.html", _page(options, records, left_out, about["passed_over"], detector.false_alarm_rate)
    )


def _page(
    options: Predict,
    records: Sequence[Record],
    left_out: Mapping[str, str],
    passed_over: Sequence[Mapping[str, str]],
    rate: float | None,
) -> str:
    lines = [
        f"Model: {options.model}. A higher score is more anomalous. Scores of one model can be compared.",
        "All heat maps share one color scale, set by normal images: uncolored pixels are normal, pale yellow pixels "
        "are far from normal.",
    ]
    if rate is not None:
        anomalous = sum(record.is_anomalous is True for record in records)
        decision = decided(anomalous, len(records), rate)
        lines.append(
            f"{decision[0].upper()}{decision[1:]} on average, for images like the calibration images. p is the share "
            "of good images that are at least as anomalous. The outline marks pixels above the calibrated threshold."
        )
    lines += [f"Skipped {name}: {reason}" for name, reason in left_out.items()]
    lines += [f"Passed over {item['path']}: {item['reason']}" for item in passed_over]
    count = counted(len(records), "image") + (", most anomalous first" if len(records) > 1 else "")
    section = Section(count, tuple(_entry(record) for record in records))
    return render_page(f"Anomaly scores of {options.input}", [section], lines=tuple(lines))


def _entry(record: Record) -> Entry:
    size = overlay_size(record.width, record.height)
    picture = Picture(link(PurePosixPath(record.overlay)), f"heat map of {record.image}", size)
    note = ""
    if record.p_value is not None:
        note = f"{'anomalous' if record.is_anomalous else 'normal'}, p = {record.p_value:.3g}"
    return Entry(record.image, record.score, (picture,), note)
