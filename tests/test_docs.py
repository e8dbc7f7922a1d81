"""The Python of README and docs runs, and their links lead somewhere."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_python_blocks_compile_and_run(page: Path) -> None:
    """A page's blocks follow each other, as a reader pastes them; those that name a reader's folders only compile."""
    blocks = python_blocks(page)
    imported = re.findall(r"^(?:import|from) (\w+)", "\n".join(blocks), re.MULTILINE)
    missing = sorted({name for name in imported if find_spec(name) is None})
    if missing:
        pytest.skip(f"needs {', '.join(missing)}, which its extra installs")
    names: dict[str, object] = {}
    ran = 0
    for block in blocks:
        code = compile(block, str(page), "exec")
        if "mvtec/" not in block:
            exec(code, names)
            ran += 1
    assert ran > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not missing


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(
        f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in navigation
        for page in PAGES
        if page.is_relative_to(ROOT / "docs")
    )
