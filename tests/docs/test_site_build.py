"""The site builds without a warning; what docstrings look like before Sphinx reads them."""

from importlib.util import find_spec
from pathlib import Path

import pytest

MISSING = [name for name in ("sphinx", "furo", "mkdocs", "material") if find_spec(name) is None]
needs_extra = pytest.mark.skipif(bool(MISSING), reason=f"the extra docs installs {', '.join(MISSING)}")


@pytest.mark.slow
def test_the_site_builds_and_its_halves_link_to_each_other(site: Path) -> None:
    components = (site / "components.html").read_text(encoding="utf-8")
    assert 'href="api/flows.html#semflow.flows.AffineCoupling"' in components
    assert 'href="../api/' in (site / "adapters" / "freia.html").read_text(encoding="utf-8")
    assert 'href="../components.html"' in (site / "api" / "flows.html").read_text(encoding="utf-8")


@needs_extra
def test_code_in_cells_may_break_and_other_text_is_as_it_was() -> None:
    from sitebuild.hooks import breakable

    cell = '<td>a_b <a href="x_y/z"><code>tests/a_b.py::test_c, d</code></a></td>'
    broken = breakable(cell)
    assert "<code>tests/<wbr>a_<wbr>b.py::<wbr>test_<wbr>c, d</code>" in broken
    assert broken.replace("<wbr>", "") == cell
    assert breakable("<td><code>semflow.app.report.plots</code></td>").count("<wbr>") == 2


@needs_extra
def test_plain_formulas_stay_plain() -> None:
    from sitebuild.reference import escaped, public_names, untyped

    lines = ["log |det dz/dx| of `f(*a)` and *b*, x_ too", "", ">>> f(*a) | b", "1 | 2", "", "c*d"]
    assert escaped(lines) == [r"log \|det dz/dx\| of `f(*a)` and \*b\*, x\_ too", "", *lines[2:5], r"c\*d"]
    assert untyped(["A map: of x.", "", "Returns:", "    The labels: in order."], attribute=True) == [
        ": A map: of x.", "", "Returns:", "    : The labels: in order.",
    ]  # fmt: skip
    assert public_names()["semflow.flows.coupling.AffineCoupling"] == "semflow.flows.AffineCoupling"


@needs_extra
def test_a_class_under_two_names_of_one_place_is_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sitebuild.hooks import _names
    from sitebuild.inventory import Entry, write_inventory

    names = ("semflow.flows.Flow", "semflow.flows.base.Flow", "semflow.app.hub.Load", "semflow.recipes.Load")
    places = ("flows.html#f", "flows.html#f", "hub.html#l", "recipes.html#l")
    entries = [Entry(name, "py:class", place) for name, place in zip(names, places, strict=True)]
    write_inventory(tmp_path / "objects.inv", "x", entries)
    monkeypatch.setenv("SEMFLOW_REFERENCE", str(tmp_path / "objects.inv"))
    found = _names()
    assert found["Flow"].uri == "flows.html#f"
    assert "Load" not in found  # of two places: which one is meant?
