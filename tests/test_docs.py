"""README and guide: Python blocks run, commands parse, links lead to files, and every page is in the navigation."""

import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from semflow.app.cli.fit import DEFAULT_RECIPE, parse_settings
from semflow.app.cli.options import Fit
from semflow.errors import ConfigError
from semflow.recipes import RECIPES, resolve_settings

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path, language: str = r"\w*") -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [re.sub(f"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_blocks_run(page: Path) -> None:
    """Blocks of a page run in order; those that use a reader's folders are only compiled."""
    code = blocks(page, "python")
    imported = re.findall(r"^(?:import|from) (\w+)", "\n".join(code), re.MULTILINE)
    missing = sorted({name for name in imported if find_spec(name) is None})
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    names: dict[str, object] = {"__name__": f"page_{page.stem}"}
    runnable = [block for block in code if "mvtec/" not in block]
    for block in code:
        compiled = compile(block, str(page), "exec")
        if block in runnable:
            exec(compiled, names)
    assert runnable


def commands(page: Path) -> list[list[str]]:
    """Return the words of each `semflow` command in blocks and table cells, without redirections."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    lines += re.findall(r"^\|.*?`(semflow [a-z][^`]*--[^`]*)`", page.read_text("utf-8"), re.MULTILINE)
    found = [re.search(r"(?:^|\s|/)semflow ([^>&|]*)", line) for line in lines]
    return [words for match in found if match and (words := shlex.split(match[1], comments=True))]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_commands_have_known_options_and_settings(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    entry = import_module("semflow.app.cli.main")  # the package has the function under this name
    monkeypatch.setattr(entry, "import_large", lambda name: SimpleNamespace(run=given.append))
    for words in commands(page):
        assert entry.main(words) == 0, words
    for options in given:
        if isinstance(options, Fit) and options.config is None:
            recipe = RECIPES[options.recipe or DEFAULT_RECIPE]
            resolve_settings(recipe, parse_settings(recipe, options.set))
    assert len(given) == len(commands(page))


def test_unknown_settings_of_a_command_are_found() -> None:
    recipe = RECIPES[DEFAULT_RECIPE]
    with pytest.raises(ConfigError, match=r"statistics\.mode"):
        resolve_settings(recipe, parse_settings(recipe, {"statistics.mode": "0.2"}))


@pytest.mark.parametrize("page", PAGES[1:], ids=name_of)
def test_code_fits_the_page_without_wrapping(page: Path) -> None:
    """A desktop window of 1440 px shows 100 columns of code."""
    assert [line for block in blocks(page) for line in block.splitlines() if len(line) > 100] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    local = [target for target in targets if "://" not in target and not target.startswith("reference/")]  # generated
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_navigation_lists_every_page_and_takes_titles_from_headings() -> None:
    navigation = re.search(r"^nav:.*?^(?=\w)", (ROOT / "mkdocs.yml").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert navigation is not None
    listed = re.findall(r"^ *- (.+\.md)$", navigation[0], re.MULTILINE)  # "title: page.md" would not match
    assert [name_of(page) for page in PAGES[2:] if page.relative_to(DOCS).as_posix() not in listed] == []
    assert all(":" not in page for page in listed)
    headings = [re.findall(r"^# (.+)$", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL), re.M)
                for page in PAGES]  # fmt: skip
    assert all(len(found) == 1 for found in headings)
