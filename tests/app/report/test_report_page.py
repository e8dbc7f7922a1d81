import json
import re
from html.parser import HTMLParser
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from semflow.app.report import VIEWS, Entry, Panel, Table, embed, gallery, link, render_page
from semflow.errors import ConfigError

VOID = {"meta", "img", "br", "input"}
SCRIPTS = ["data", ""]  # ids


class Reader(HTMLParser):
    """Collects scripts, text and links, and checks that tags are nested."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts: dict[str, str] = {}
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [value for key in ("src", "href") if (value := values.get(key)) is not None]
        if tag == "script":
            self.scripts[values.get("id") or ""] = ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[list(self.scripts)[-1]] += data
        else:
            self.text += data


def read(page: str) -> tuple[Reader, dict[str, Any]]:
    """Return the parsed page and its data."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert list(reader.scripts) == SCRIPTS
    return reader, json.loads(reader.scripts["data"])


# HTML replaces carriage returns and NUL in its text.
names = st.text(st.characters(exclude_characters="\r\0", exclude_categories=("Cs",)), min_size=1, max_size=20)


@given(st.lists(names, min_size=1, max_size=4))
def test_page_escapes_all_names(files: list[str]) -> None:
    entries = [Entry(name, 0.0, views={"map": link(PurePath("maps") / f"x{name}")}, group=name) for name in files]
    table = Table(("a", files[0]), (("b", files[-1]),))
    reader, data = read(render_page(files[0], entries, lines=files, notes=files, tables=[table]))
    assert [row["name"] for row in data["entries"]] == files
    assert all(name in reader.text for name in files)
    assert reader.links == []


@pytest.mark.parametrize(
    "name", ['"><script>alert(1)</script>&.png', "</script><!--", "{{ data }}{% raw %}", "\udcff\u2028"]
)
def test_page_keeps_markup_in_names_as_text(name: str) -> None:
    page = render_page(name, [Entry(name, 1.0, views={"overlay": link(PurePath(name))}, group=name)], lines=[name])
    reader, data = read(page)
    assert data["entries"][0]["name"] == data["groups"][0] == name
    assert reader.text.count(name) == 3  # window title, heading, line
    assert unquote(data["entries"][0]["views"]["overlay"], errors="surrogateescape") == name


def test_links_are_relative() -> None:
    assert link(PurePath("https://x.png")) == "https%3A/x.png"
    assert link(PurePath("a b/50%#?.png")) == "a%20b/50%25%23%3F.png"


@pytest.mark.parametrize("score", [np.inf, -np.inf, np.nan])
def test_page_of_scores_that_are_not_finite_is_valid_json(score: float) -> None:
    page = render_page("t", [Entry("a", score)])
    found = json.loads(read(page)[0].scripts["data"], parse_constant=pytest.fail)["entries"][0]["score"]
    assert found == np.nan_to_num(score)


def test_page_has_no_external_resources() -> None:
    views = {"original": embed(Image.new("RGB", (2, 2)), "JPEG"), "map": embed(Image.new("RGB", (2, 2)))}
    page = render_page("t", [Entry("a", 0.5, views=views)])
    assert re.findall(r"https?://[^\"]*", page) == ["http://www.w3.org/2000/svg"]  # a name, which nothing opens
    assert not re.search(r"@import|url\(", page)
    assert read(page)[1]["entries"][0]["views"] == views
    assert set(views) < set(VIEWS)


@pytest.mark.parametrize(
    ("entries", "choices"),
    [
        ([Entry("a", 1.0)], set()),
        ([Entry("a", 1.0, label=0)], {"worst", "missed", "alarm"}),
        ([Entry("a", 1.0, label=1, views={"truth": "a.png"})], {"worst", "missed", "alarm", "truth"}),
        ([], set()),
    ],
)
def test_page_offers_what_its_entries_have(entries: list[Entry], choices: set[str]) -> None:
    page = render_page("t", entries)
    found = set(re.findall(r'value="(\w+)"', page))
    assert found == {"pair", "high", "low", "name", "all", "anomalous", "normal"} | choices


def test_page_of_thousands_is_small() -> None:
    entries = [Entry(f"{n}.png", n / 7, (640, 480), {"overlay": f"overlays/{n}.png"}) for n in range(2000)]
    page = render_page("t", entries)
    assert len(page) < 500_000
    assert "<img" not in page  # the script adds those that are seen


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
