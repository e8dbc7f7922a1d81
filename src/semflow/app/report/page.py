"""The page of results: one HTML file with its style and script inside, and pictures beside it that load when seen."""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal
from urllib.parse import quote

import jinja2
import numpy as np
from PIL import Image

VIEWS = {
    "original": "original",
    "truth": "labeled defect",
    "overlay": "heat map",
    "map": "map alone",
}
"""The views of an entry, in the order in which the page offers them."""

View = Literal["original", "truth", "overlay", "map"]


@dataclass(frozen=True)
class Entry:
    """One image of a page.

    Args:
        name: Any text.
        score: Anomaly score.
        size: Width and height of its pictures in pixels, all stretched to these proportions.
        views: URL of each picture by what it shows, see `VIEWS`; results of `embed` or `link`.
        p_value: None if the detector is not calibrated.
        is_anomalous: Decision of the detector; None if it is not calibrated.
        label: 0 normal, 1 anomalous, -1 unknown.
        group: Detector of the image. Scores are compared within a group only.

    Example:
        >>> Entry("crack/000", 2.1, (64, 48), {"overlay": "overlays/000.png"}, label=1).views["overlay"]
        'overlays/000.png'
    """

    name: str
    score: float
    size: tuple[int, int] = (1, 1)
    views: Mapping[View, str] = field(default_factory=dict)
    p_value: float | None = None
    is_anomalous: bool | None = None
    label: int = -1
    group: str = ""


@dataclass(frozen=True)
class Table:
    """Header and rows of a small table whose first column is text and whose other columns are numbers.

    Example:
        >>> Table(("texture", "image AUROC"), (("brick", "0.98"),)).header
        ('texture', 'image AUROC')
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...] = ()


def embed(picture: Image.Image, format: Literal["PNG", "JPEG"] = "PNG") -> str:
    """Return a picture as a `data:` URL; for photographs, JPEG is a quarter of the size of PNG.

    Example:
        >>> embed(Image.new("RGB", (1, 1)))[:22]
        'data:image/png;base64,'
    """
    buffer = io.BytesIO()
    (picture.convert("RGB") if format == "JPEG" else picture).save(buffer, format=format, quality=90)
    return f"data:image/{format.lower()};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def link(path: PurePath) -> str:
    """Return the URL of a file, given by its path relative to the page.

    Example:
        >>> link(PurePath("heat maps/50%#1.png"))
        'heat%20maps/50%25%231.png'
    """
    return quote(os.fsencode(path.as_posix()))


def render_page(
    title: str,
    entries: Sequence[Entry],
    *,
    lines: Sequence[str] = (),
    notes: Sequence[str] = (),
    tables: Sequence[Table] = (),
    rate: float | None = None,
    pro: Sequence[tuple[float, float]] = (),
    worst_first: bool = False,
) -> str:
    """Render a page as a string.

    Args:
        title: Heading and window title.
        entries: Images, in any order.
        lines: Paragraphs under the title.
        notes: Lines of a list that is closed at first, such as files that were not scored.
        tables: Metrics, shown before the images.
        rate: False-alarm rate of the decisions; None if the detector is not calibrated.
        pro: Points of the PRO curve, false-positive rate and overlap.
        worst_first: Start with the images that are furthest on the wrong side, not with the most anomalous ones.

    Example:
        >>> page = render_page("<b>", [Entry("</script>.png", 0.5)])
        >>> "<b>" in page, "</script>.png" in page, "&lt;b&gt;" in page
        (False, False, True)
    """
    groups = list(dict.fromkeys(entry.group for entry in entries))
    data = {
        "views": VIEWS, "groups": groups, "rate": rate, "pro": [tuple(map(float, point)) for point in pro],
        "worstFirst": worst_first, "entries": [_row(entry, groups) for entry in entries],
    }  # fmt: skip
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("page.html")
    return page.render(
        title=title, lines=lines, notes=notes, tables=tables, data=data, groups=groups,
        labeled=any(entry.label >= 0 for entry in entries),
        views={kind: text for kind, text in VIEWS.items() if any(kind in entry.views for entry in entries)},
    )  # fmt: skip


def _row(entry: Entry, groups: Sequence[str]) -> dict[str, Any]:
    return {
        "name": entry.name, "score": float(np.nan_to_num(entry.score)), "p": entry.p_value,
        "called": entry.is_anomalous, "label": entry.label, "group": groups.index(entry.group), "size": entry.size,
        "views": dict(entry.views),
    }  # fmt: skip
