import re
from html.parser import HTMLParser
from pathlib import PurePath
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from semflow.app.report import Entry, Panel, Picture, Section, Table, embed, gallery, link, render_page
from semflow.errors import ConfigError

VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Collects tags, names and sources, and checks that tags are nested."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        self.sources += [value for key in ("src", "href") if (value := values.get(key)) is not None]
        if values.get("class") == "name":
            self.names.append("")
        if tag not in VOID:
            self.open.append(tag if values.get("class") != "name" else "name")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().replace("name", "span") == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "name":
            self.names[-1] += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def section_page(*entries: Entry) -> str:
    return render_page("t", [Section("brick", entries)])


# HTML replaces carriage returns and NUL.
names = st.text(st.characters(exclude_characters="\r\0", exclude_categories=("Cs",)), min_size=1, max_size=20)


@given(st.lists(names, min_size=1, max_size=4))
def test_page_escapes_all_names(files: list[str]) -> None:
    entries = [Entry(name, 0.0, (Picture(link(PurePath("maps") / f"x{name}"), name, (4, 2)),)) for name in files]
    page = render_page(
        files[0], [Section(files[-1], tuple(entries))], lines=files, table=Table(("a", files[0]), (("b", files[-1]),))
    )
    reader = read(page)
    assert sorted(reader.names) == sorted(files)
    assert "script" not in reader.tags


def test_page_escapes_script_in_names() -> None:
    name = '"><script>alert(1)</script>&.png'
    entry = Entry(name, 1.0, (Picture(link(PurePath(name)), name, (4, 2)),), note=name)
    page = render_page(name, [Section(name, (entry,))])
    reader = read(page)
    assert reader.names == [name]
    assert not {"script"} & reader.tags
    assert {unquote(source) for source in reader.sources} == {name}


def test_links_are_relative() -> None:
    assert link(PurePath("https://x.png")) == "https%3A/x.png"
    assert link(PurePath("a b/50%#?.png")) == "a%20b/50%25%23%3F.png"


def test_page_sorts_entries_by_score() -> None:
    page = section_page(Entry("low", 0.1, ()), Entry("high", 0.9, ()), Entry("middle", 0.5, ()))
    assert read(page).names == ["high", "middle", "low"]
    assert re.findall(r"width:([\d.]+)%", page) == ["100.0", "50.0", "0.0"]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_page_of_equal_scores_or_without_entries(count: int) -> None:
    assert read(section_page(*[Entry("a", 0.5, ())] * count)).names == ["a"] * count


def test_page_has_no_external_resources() -> None:
    pictures = tuple(Picture(embed(Image.new("RGB", (2, 2)), kind), "heat", (2, 2)) for kind in ("PNG", "JPEG"))
    page = section_page(Entry("a", 0.5, pictures))
    assert "http" not in page
    assert [source.split(",")[0] for source in read(page).sources] == [
        "data:image/png;base64",
        "data:image/jpeg;base64",
    ]
    assert "color-scheme: light dark" in page


def test_page_of_thousands_loads_pictures_lazily() -> None:
    """Without a size, pictures have no height until they load, and browsers load all of them at once."""
    entries = [Entry(f"{n}.png", n / 7, (Picture(f"overlays/{n}.png", "heat", (640, 10 + n)),)) for n in range(2000)]
    page = section_page(*entries)
    images = re.findall(r'<img src="overlays/(\d+)\.png"[^>]* width="640" height="(\d+)" loading="lazy">', page)
    assert sorted((int(n), int(height)) for n, height in images) == [(n, 10 + n) for n in range(2000)]
    assert len(page) < 1_000_000


def test_wide_tables_scroll() -> None:
    page = render_page("t", [], table=Table(("a", "b"), (("1", "2"),)))
    assert '<div class="wide"><table>' in page
    assert ".wide { overflow-x: auto" in page


def panel(caption: str = "brick, scratch", truth: bool = True) -> Panel:
    mask = np.zeros((32, 32), dtype=bool)
    mask[:16] = True
    return Panel(
        Image.new("RGB", (32, 32), (10, 200, 10)),
        Image.new("RGB", (32, 32), (200, 10, 10)),
        mask if truth else None,
        caption,
        0.5,
    )


def test_gallery_shows_image_truth_and_heat() -> None:
    picture = np.asarray(gallery([panel(), panel()], columns=2, tile=40, title="t", value_range=(0.0, 1.0)))
    for color in ((10, 200, 10), (200, 10, 10)):
        assert (picture == color).all(axis=2).sum() == 2 * 40 * 40
    green = np.argwhere((picture == (10, 200, 10)).all(axis=2))
    top, left = green.min(axis=0)
    truth = picture[top : top + 40, left + 46 : left + 86]
    assert (truth[:18] == 255).all()
    assert (truth[22:] == 0).all()


def test_gallery_grows_and_shortens_long_names() -> None:
    one, many = gallery([panel("n" * 500)]), gallery([panel(truth=False)] * 5, columns=2)
    assert many.width < 2.1 * one.width
    assert many.height > 2 * one.height
    with pytest.raises(ConfigError, match="panels"):
        gallery([])
