"""Inventories of Sphinx, by which the guide and the reference link to each other without a network."""

import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

__all__ = ["Entry", "guide_entries", "read_inventory", "read_list", "write_inventory"]

HEADER = "# Sphinx inventory version 2"


class Entry(NamedTuple):
    """One name: `kind` is domain:role, `uri` is relative to the base that whoever reads the inventory knows."""

    name: str
    kind: str
    uri: str
    title: str = "-"


def write_inventory(path: Path, project: str, entries: Iterable[Entry]) -> None:
    """Write an objects.inv: four lines of text, then one compressed line an entry."""
    head = f"{HEADER}\n# Project: {project}\n# Version: \n# The remainder of this file is compressed using zlib.\n"
    body = "".join(f"{entry.name} {entry.kind} 1 {entry.uri} {entry.title}\n" for entry in entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head.encode() + zlib.compress(body.encode(), 9))


def read_inventory(path: Path) -> dict[str, Entry]:
    """The entries of the Python domain by name, with `$` in their addresses put in."""
    header, *_, body = path.read_bytes().split(b"\n", 4)
    if header.decode() != HEADER:
        raise ValueError(f"{path}: expected an inventory that begins with {HEADER!r}, but it begins with {header!r}")
    found = {}
    for line in zlib.decompress(body).decode().splitlines():
        name, kind, _, uri, title = re.fullmatch(r"(.+?)\s+(\S+)\s+(-?\d+)\s+(\S*)\s+(.*)", line).groups()
        if kind.startswith("py:"):
            found[name] = Entry(name, kind, uri.replace("$", name), title)
    return found


def read_list(path: Path) -> list[Entry]:
    """Entries of a text file, a line each: name, kind, address."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Entry(*line.split()) for line in lines if line.strip() and not line.startswith("#")]


def guide_entries(docs: Path) -> list[Entry]:
    """Every page of the guide as a `std:doc` under its name without `.md`, titled by its first heading."""
    entries = []
    for page in sorted(docs.rglob("*.md")):
        name = page.relative_to(docs).with_suffix("").as_posix()
        title = re.search(r"^# (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        if title is None:
            raise ValueError(f"{page}: expected a heading of the first level, but there is none")
        entries.append(Entry(name, "std:doc", f"{name}.html", title[1]))
    return entries
