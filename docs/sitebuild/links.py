"""The check of a built site: every link leads somewhere inside it, and nothing is loaded from elsewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["faults"]

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "video": "src"}
CSS_URL = re.compile(r"url\(\s*['\"]?([^'\")]+)['\"]?\s*\)|@import\s+['\"]([^'\"]+)['\"]")


class Page(HTMLParser):
    """The anchors of a page, and the addresses that it links to or loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors.update(value for key in ("id", "name") if (value := values.get(key)))
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        address = values.get(LOADED.get(tag, ""))
        # Canonical and alternate links name places and load nothing.
        if address and (tag != "link" or values.get("rel") in ("stylesheet", "icon", "preload", "preconnect")):
            self.loads.append(address)


def faults(site: Path) -> list[str]:
    """One line for every link without an end and for everything that a page would load from elsewhere."""
    site = site.resolve()
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        where = path.relative_to(site).as_posix()
        found += [f"{where}: loads {load}, expected a file of the site" for load in page.loads if _elsewhere(load)]
        ends = {address: _fault(site, pages, path, address) for address in (*page.links, *page.loads)}
        found += [f"{where}: {address}: {fault}" for address, fault in ends.items() if fault]
    for sheet in sorted(site.rglob("*.css")):
        where = sheet.relative_to(site).as_posix()
        for match in CSS_URL.finditer(sheet.read_text(encoding="utf-8")):
            address = match[1] or match[2]
            if _elsewhere(address):
                found.append(f"{where}: loads {address}, expected a file of the site")
            elif not address.startswith(("#", "data:")) and not (sheet.parent / urlsplit(address).path).exists():
                found.append(f"{where}: {address}: no such file")
    return found


def _elsewhere(address: str) -> bool:
    return urlsplit(address).scheme not in ("", "data") or address.startswith("//")


def _fault(site: Path, pages: dict[Path, Page], path: Path, address: str) -> str | None:
    parts = urlsplit(address)
    if parts.scheme or address.startswith("//"):  # to other sites: there is no network to ask
        return None
    if parts.path.startswith("/"):
        return "expected a relative address, since a site may lie below a folder"
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_relative_to(site) or not target.exists():
        return "no such file"
    fragment = unquote(parts.fragment)
    # "#" and "#top" are the top of any page; "#__..." are the theme's own.
    known = target not in pages or fragment in ("", "top") or fragment in pages[target].anchors
    return None if known else "no such place on the page"
