"""HTML pages of results: without scripts or external resources, light or dark as the system."""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import PurePath
from typing import Literal, NamedTuple
from urllib.parse import quote

from PIL import Image

STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #66666f; --bar: #d9562b; }
@media (prefers-color-scheme: dark) { :root { --faint: #a0a0aa; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem; max-width: 68rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h1, h2, p { overflow-wrap: anywhere; } p { margin: .25rem 0; max-width: 46rem; } .faint { color: var(--faint); }
.wide { overflow-x: auto; margin: .75rem 0; } table { border-collapse: collapse; }
th, td { text-align: left; padding: .3rem 0 .3rem .9rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { padding-left: 0; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
ol { list-style: none; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); }
li { border: 1px solid var(--line); border-radius: 6px; padding: .6rem; break-inside: avoid; min-width: 0; }
.name { overflow-wrap: anywhere; } .row { display: flex; justify-content: space-between; gap: .75rem; }
.score { font-variant-numeric: tabular-nums; font-weight: 600; }
.bar { height: 4px; background: var(--line); margin: .35rem 0 .5rem; }
.bar i { display: block; height: 4px; background: var(--bar); }
.pictures { display: flex; gap: 4px; } .pictures a, .pictures span { flex: 1; min-width: 0; }
img { width: 100%; height: auto; max-height: 24rem; object-fit: contain; display: block; }
"""


class Picture(NamedTuple):
    """One picture of a page.

    Args:
        source: Result of `embed` or `link`.
        description: Alternative text.
        size: Width and height in pixels. Browsers reserve this space, so that pictures further down can load later.

    Example:
        >>> Picture("overlays/a.png", "a crack in a brick", (64, 48)).size
        (64, 48)
    """

    source: str
    description: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Entry:
    """One image of a page.

    Args:
        name: Any text.
        score: Anomaly score. A section lists its entries from the highest score to the lowest.
        pictures: Pictures shown side by side.
        note: Text under the name.

    Example:
        >>> Entry("crack/000", 2.1, (), note="found").score
        2.1
    """

    name: str
    score: float
    pictures: tuple[Picture, ...]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """Heading and images with comparable scores, those of one model, in any order.

    Example:
        >>> Section("brick", (Entry("crack/000", 2.1, ()), Entry("good/000", 0.3, ()))).entries[0].name
        'crack/000'
    """

    heading: str
    entries: tuple[Entry, ...]


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
    title: str, sections: Sequence[Section], *, lines: Sequence[str] = (), table: Table | None = None
) -> str:
    """Render a page as a string.

    Args:
        title: Heading and window title.
        sections: Images.
        lines: Paragraphs under the title.
        table: Metrics, shown before the images.

    Example:
        >>> page = render_page("Results", [Section("brick", (Entry("<b>.png", 0.5, ()),))])
        >>> "<b>" in page, "&lt;b&gt;.png" in page
        (False, True)
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="faint">{escape(line)}</p>' for line in lines),
        *([] if table is None else [_table(table)]),
    ]
    for section in sections:
        ordered = sorted(section.entries, key=lambda entry: (-entry.score, entry.name))
        low, high = (ordered[-1].score, ordered[0].score) if ordered else (0.0, 0.0)
        listed = [_entry(entry, (entry.score - low) / (high - low) if high > low else 0.0) for entry in ordered]
        parts += [f"<h2>{escape(section.heading)}</h2><ol>", *listed, "</ol>"]
    return "\n".join([*parts, "</body></html>\n"])


def _entry(entry: Entry, share: float) -> str:
    pictures = "".join(map(_picture, entry.pictures))
    note = f'<div class="faint">{escape(entry.note)}</div>' if entry.note else ""
    return (
        f'<li><div class="row"><span class="name">{escape(entry.name)}</span>'
        f'<span class="score">{entry.score:.4f}</span></div>{note}'
        f'<div class="bar"><i style="width:{100 * share:.1f}%"></i></div><div class="pictures">{pictures}</div></li>'
    )


def _picture(picture: Picture) -> str:
    source, text = escape(picture.source), escape(picture.description)
    width, height = picture.size
    image = f'<img src="{source}" alt="{text}" title="{text}" width="{width}" height="{height}" loading="lazy">'
    return f"<span>{image}</span>" if source.startswith("data:") else f'<a href="{source}">{image}</a>'


def _table(table: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        kinds = ("", *(' class="number"' for _ in cells[1:]))
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in table.rows)
    head = line(table.header, "th")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
