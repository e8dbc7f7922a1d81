"""MkDocs hooks: generate a reference page for each public module and link names in code to it.

mkdocstrings loads `ExampleSections` from this file too.
"""

import re
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from griffe import Extension, Object
from mkdocs.structure.files import File, Files

import semflow

ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "CODE_OF_CONDUCT.md": "conduct.md"}
MODULES = ["semflow"]
for package, prefix in ((semflow, "semflow"), (semflow.app, "semflow.app")):
    MODULES += [f"{prefix}.{name}" for name in package.__all__ if isinstance(getattr(package, name), ModuleType)]
MODULES.remove("semflow.app")  # it only contains modules
SKIP = re.compile(r"<pre.*?</pre>|<a\b.*?</a>|<autoref.*?</autoref>|<h\d.*?</h\d>", re.DOTALL)
CODE = re.compile(rf"{SKIP.pattern}|<code>((?:semflow\.)?[A-Za-z_][\w.]*)(?:\(\))?</code>", re.DOTALL)
DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


def public_names(module: str) -> list[str]:
    """Return the public names that `module` itself documents: all of `__all__` but modules."""
    home = import_module(module)
    return [name for name in home.__all__ if f"{module}.{name}" not in MODULES and name != "app"]


def on_config(config: Any) -> Any:
    """Append the reference pages to the navigation."""
    pages = [{module: page_of(module)} for module in MODULES]
    config.nav.append({"Reference": ["reference/index.md", *pages]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the repository's root and the reference: per module its docstring and its public names."""
    for name, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text("utf-8").replace("](docs/", "](")))
    rows = []
    for module in MODULES:
        summary, _, rest = (import_module(module).__doc__ or "").strip().partition("\n")
        entries = "\n".join(f"::: {path_of(module, name)}\n" for name in public_names(module))
        text = f"# {module}\n\n{summary}\n{rest}\n\n{entries}"
        files.append(File.generated(config, page_of(module), content=text))
        rows.append(f"| [`{module}`]({page_of(module).removeprefix('reference/')}) | {summary} |")
    index = "# Reference\n\nAll public modules. The examples run as tests.\n\n| module | contents |\n|---|---|\n"
    files.append(File.generated(config, "reference/index.md", content=index + "\n".join(rows) + "\n"))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links to the pages of the repository's root to their copies."""
    up = "../" * page.file.src_uri.count("/")
    for name, copy in ROOT_PAGES.items():
        markdown = re.sub(rf"\]\((\.\./)*{name}", f"]({up}{copy}", markdown)
    return markdown


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Link `semflow.flows.AffineCoupling`, and `AffineCoupling` if only one module has it, to the reference."""

    def linked(match: re.Match[str]) -> str:
        target = targets().get(match[1]) if match[1] else None
        return f'<autoref identifier="{target}" optional>{match[0]}</autoref>' if target else match[0]

    return CODE.sub(linked, html)


def path_of(module: str, name: str) -> str:
    """Return the path of a public name; if a submodule has the same name, the path of the name inside it."""
    return f"{module}.{name}.{name}" if f"{module}.{name}" in sys.modules else f"{module}.{name}"


def page_of(module: str) -> str:
    """Return the path of the reference page of `module` below docs/."""
    return f"reference/{module}.md"


@cache
def targets() -> dict[str, str]:
    """Return the anchor that each name in code leads to; short names need a capital or an underscore."""
    full = {f"{module}.{name}": path_of(module, name) for module in MODULES[1:] for name in public_names(module)}
    short = [name.rpartition(".")[2] for name in full]
    unique = {last: path for last, path in zip(short, full.values(), strict=True) if short.count(last) == 1}
    return {last: path for last, path in unique.items() if re.search("[A-Z_]", last)} | full


class ExampleSections(Extension):
    """Griffe extension that reads `Example:` as `Examples:`, griffe's spelling, and fences doctests outside of it."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Change the docstring of `obj`."""
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = DOCTEST.sub("```pycon\n\\g<0>\n```", text)
