"""The built site: complete reference, links in the guide, and no file from another host."""

import re
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import pytest

import semflow

pytestmark = pytest.mark.slow
MODULES = ["semflow", *(f"semflow.{name}" for name in semflow._MODULES if name != "app")]
MODULES += [f"semflow.app.{name}" for name in semflow.app.__all__]


@pytest.fixture(scope="module")
def reference(site: Path) -> dict[str, str]:
    """Return the HTML of each reference page by module."""
    return {page.stem: page.read_text(encoding="utf-8") for page in (site / "reference").glob("semflow*.html")}


def test_every_public_module_has_a_reference_page(reference: dict[str, str]) -> None:
    assert reference.keys() == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_reference_page_contains_every_public_name(reference: dict[str, str], module: str) -> None:
    anchors = set(re.findall(r'id="([^"]+)"', reference[module]))
    submodules = {name.rpartition(".")[2] for name in MODULES} | {"app"}
    names = set(import_module(module).__all__) - (submodules if module == "semflow" else set())
    assert {name for name in names if not {f"{module}.{name}", f"{module}.{name}.{name}"} & anchors} == set()


@pytest.mark.parametrize("module", MODULES)
def test_reference_documents_names_and_not_modules_of_the_same_name(reference: dict[str, str], module: str) -> None:
    assert (
        re.findall(r'doc-heading">\s*<code class="doc-symbol doc-symbol-heading doc-symbol-module"', reference[module])
        == []
    )


def test_reference_contains_call_methods_and_type_aliases(reference: dict[str, str]) -> None:
    assert 'id="semflow.synthesis.CutPaste.__call__"' in reference["semflow.synthesis"]
    assert 'id="semflow.nn.Context"' in reference["semflow.nn"]
    assert 'id="semflow.nn.SubnetFactory"' in reference["semflow.nn"]


def test_doctests_are_code_and_not_quotes(reference: dict[str, str]) -> None:
    assert [module for module, page in reference.items() if "<blockquote>" in page] == []


def test_names_in_the_guide_link_to_the_reference(site: Path) -> None:
    components = (site / "components.html").read_text(encoding="utf-8")
    assert 'href="reference/semflow.flows.html#semflow.flows.AffineCoupling"' in components
    adapter = (site / "adapters" / "freia.html").read_text(encoding="utf-8")
    assert 'href="../reference/semflow.flows.html#semflow.flows.SoftPermutation"' in adapter


class Loads(HTMLParser):
    """Addresses of files that a page loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(values.get("src") or "")
        elif tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.addresses.append(values.get("href") or "")


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        external = [a for a in Loads(page.read_text(encoding="utf-8")).addresses if re.match(r"https?:|//", a)]
        assert external == [], page
    for sheet in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")) == [], sheet
