"""The check of the built site finds what it must find, and nothing else."""

from pathlib import Path

import pytest
from sitebuild.links import faults


def site(folder: Path, body: str, head: str = "") -> Path:
    (folder / "api").mkdir()
    (folder / "index.html").write_text(
        f"<html><head>{head}</head><body><h1 id='top-of-page'>x</h1>{body}</body></html>"
    )
    (folder / "api" / "flows.html").write_text("<h1 id='flows'>y</h1><a href='../index.html#top-of-page'>up</a>")
    (folder / "style.css").write_text("a { background: url(data:image/png;base64,AA) }")
    return folder


GOOD = [
    '<a href="api/flows.html#flows">flows</a>',
    '<a href="#top-of-page">here</a><a href="#">top</a>',
    '<a href="https://elsewhere.example/page">a link out is no load</a>',
    '<a href="mailto:someone@elsewhere.example">mail</a>',
    '<img src="data:image/png;base64,AA">',
    '<a href="api/flows.html?q=a%20b#flows">with a query</a>',
]
BAD = [
    ('<a href="api/flow.html">x</a>', "no such file"),
    ('<a href="api/flows.html#flow">x</a>', "no such place"),
    ('<a href="#nowhere">x</a>', "no such place"),
    ('<a href="/api/flows.html">x</a>', "relative"),
    ('<a href="../../outside.html">x</a>', "no such file"),
    ('<img src="picture.png">', "no such file"),
    ('<img src="https://elsewhere.example/picture.png">', "loads"),
    ('<script src="//elsewhere.example/a.js"></script>', "loads"),
]


@pytest.mark.parametrize("body", GOOD)
def test_good_links_pass(tmp_path: Path, body: str) -> None:
    assert faults(site(tmp_path, body)) == []


@pytest.mark.parametrize(("body", "said"), BAD)
def test_bad_links_are_named(tmp_path: Path, body: str, said: str) -> None:
    found = faults(site(tmp_path, body))
    assert len(found) == 1 or (said == "loads" and found)
    assert found[0].startswith("index.html: ")
    assert said in found[0]


def test_styles_from_elsewhere_are_named(tmp_path: Path) -> None:
    head = (
        '<link rel="stylesheet" href="https://elsewhere.example/a.css"><link rel="canonical" href="https://a.example/">'
    )
    assert [fault for fault in faults(site(tmp_path, "", head)) if "loads https://elsewhere.example/a.css" in fault]
    (tmp_path / "style.css").write_text('@import "https://elsewhere.example/b.css"; a { background: url(font.woff2) }')
    found = faults(tmp_path)
    assert any("loads https://elsewhere.example/b.css" in fault for fault in found)
    assert any("style.css: font.woff2: no such file" in fault for fault in found)
    assert not any("canonical" in fault or "a.example" in fault for fault in found)
