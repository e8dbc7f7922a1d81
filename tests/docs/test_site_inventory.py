"""Inventories against Sphinx's own reader, and the pages of the reference against the rooms."""

import io
from pathlib import Path

import pytest
from sitebuild.inventory import Entry, guide_entries, read_inventory, read_list, write_inventory

import semflow

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_sphinx_reads_what_is_written(tmp_path: Path) -> None:
    inventory = pytest.importorskip("sphinx.util.inventory", reason="the extra docs installs sphinx")
    write_inventory(tmp_path / "objects.inv", "guide", guide_entries(DOCS))
    read = inventory.InventoryFile.loads((tmp_path / "objects.inv").read_bytes(), uri="..")
    item = read.data["std:doc"]["adapters/freia"]
    assert (item.uri, item.display_name) == ("../adapters/freia.html", "FrEIA")


def test_reading_undoes_writing(tmp_path: Path) -> None:
    entries = [
        Entry("semflow.flows.Flow", "py:class", "flows.html#semflow.flows.Flow"),
        Entry("semflow.load", "py:function", "r.html#$", "title of several words"),
        Entry("index", "std:doc", "index.html", "Home"),
    ]
    write_inventory(tmp_path / "x.inv", "x", entries)
    read = read_inventory(tmp_path / "x.inv")
    assert read["semflow.flows.Flow"] == entries[0]
    assert read["semflow.load"].uri == "r.html#semflow.load"
    assert "index" not in read  # no Python name


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.inv").write_bytes(io.BytesIO(b"# Sphinx inventory version 1\na\nb\nc\nd").getvalue())
    with pytest.raises(ValueError, match="version 2"):
        read_inventory(tmp_path / "x.inv")


def test_other_libraries_are_named_once() -> None:
    names = [entry.name for entry in read_list(DOCS / "api" / "others.txt")]
    assert len(names) == len(set(names)) > 20


def test_every_room_has_a_page_of_the_reference() -> None:
    pages = {page.stem for page in (DOCS / "api").glob("*.rst")} - {"index"}
    assert pages == set(semflow._MODULES)
    index = (DOCS / "api" / "index.rst").read_text(encoding="utf-8").split()
    assert pages <= set(index)
    for room in pages:
        assert f".. automodule:: semflow.{room}\n" in (DOCS / "api" / f"{room}.rst").read_text(encoding="utf-8")
