"""What `semflow predict` says of all images together: scores.csv, scores.json and index.html."""

__all__ = ["TABLES", "Record", "write_tables"]

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from semflow._version import __version__
from semflow.app.report import Entry, Picture, Section, link, render_page
from semflow.files import write_atomic

from .options import Predict

TABLES = ("scores.csv", "scores.json", "index.html")
LONGEST_SIDE = 1024


@dataclass(frozen=True)
class Record:
    """One image's line in scores.csv and scores.json; the paths are relative to the output folder.

    The anomaly map and the mask are at the size the detector works at; width and height are those of the image itself.
    The last three are empty where the model is not calibrated.
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

    @property
    def overlay_size(self) -> tuple[int, int]:
        """Width and height of the overlay: the image's own proportions, at most LONGEST_SIDE pixels long."""
        scale = min(1.0, LONGEST_SIDE / max(self.width, self.height))
        return max(1, round(self.width * scale)), max(1, round(self.height * scale))


def write_tables(
    folder: Path,
    options: Predict,
    records: Sequence[Record],
    left_out: Mapping[str, str],
    map_range: tuple[float, float],
    about: Mapping[str, str],
    false_alarm_rate: float | None = None,
) -> None:
    """Write the three files.

    Args:
        folder: where to.
        options: of the command.
        records: one an image, in the order of the input.
        left_out: images that could not be read, each with the reason.
        map_range: of the colours.
        about: further entries of scores.json.
        false_alarm_rate: that decisions are made at, if they are.
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
        "map_range": list(map_range),
        "false_alarm_rate": false_alarm_rate,
        **about,
        "images": [asdict(record) for record in records],
        "left_out": [{"image": name, "reason": reason} for name, reason in left_out.items()],
    }
    write_atomic(folder / "scores.json", json.dumps(content, indent=2) + "\n")
    write_atomic(folder / "index.html", _page(options, records, left_out, false_alarm_rate))


def _page(
    options: Predict, records: Sequence[Record], left_out: Mapping[str, str], false_alarm_rate: float | None
) -> str:
    entries = tuple(
        Entry(
            record.image,
            record.score,
            (Picture(link(PurePosixPath(record.overlay)), f"heat map of {record.image}", record.overlay_size),),
            _note(record),
        )
        for record in records
    )
    lines = (
        f"Model {options.model}. A higher score is more anomalous; scores compare between images of this model.",
        "The colours have one scale for all images, taken from the normal training images: uncoloured is as usual "
        "there, pale yellow far beyond anything seen there.",
        *_decisions(records, false_alarm_rate),
        *(f"Left out: {name}, as it could not be read. {reason}" for name, reason in left_out.items()),
    )
    count = "1 image" if len(entries) == 1 else f"{len(entries)} images, the most anomalous first"
    return render_page(f"Anomaly scores of {options.input}", [Section(count, entries)], lines=lines)


def _note(record: Record) -> str:
    if record.p_value is None:
        return ""
    return f"{'anomalous' if record.is_anomalous else 'normal'}, p = {record.p_value:.3g}"


def _decisions(records: Sequence[Record], false_alarm_rate: float | None) -> list[str]:
    if false_alarm_rate is None:
        return []
    found = sum(record.is_anomalous is True for record in records)
    return [
        f"{found} of {len(records)} are called anomalous. p is how often an image at least as anomalous is seen among "
        f"good ones; of good images as the model was calibrated on, {100 * false_alarm_rate:.3g} % or fewer are called "
        "anomalous. An outline surrounds what is higher than the maps of as many good images ever get."
    ]
