"""Hooks of mkdocs: names in code become links to the reference, and files of the repository become part of the site."""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from sitebuild.inventory import Entry, read_inventory

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "CODE_OF_CONDUCT.md": "conduct.md"}
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)]*)?\))")
CODE = re.compile(
    r"<pre.*?</pre>|<a\b.*?</a>|<h\d.*?</h\d>|<code>((?:semflow\.)?[A-Za-z_][\w.]*)(\(\))?</code>", re.DOTALL
)
CELL_CODE = re.compile(r"(?<=<code>)[^<]+(?=</code>)")


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to outside of docs/: three files as pages, all others as they are, below files/."""
    for name, page in PAGES.items():
        if (ROOT / name).exists():
            files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    for page in [*Path(config.docs_dir).rglob("*.md"), *(ROOT / name for name in PAGES)]:
        for _, target, _ in LINK.findall(page.read_text(encoding="utf-8")) if page.exists() else ():
            file = _outside(page.parent, target, Path(config.docs_dir))
            if file and files.get_file_from_path(f"files/{file}") is None:
                files.append(File.generated(config, f"files/{file}", abs_src_path=str(ROOT / file)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links to files outside of docs/ to where `on_files` has put them."""
    source = page.file.src_uri
    origin = next((ROOT / name for name, copy in PAGES.items() if copy == source), Path(config.docs_dir) / source)
    up = "../" * source.count("/")

    def replaced(match: re.Match[str]) -> str:
        target = (origin.parent / match[2]).resolve()
        if "://" in match[2] or not target.is_relative_to(ROOT):
            return match[0]
        name = target.relative_to(ROOT).as_posix()
        if name in PAGES:
            name = PAGES[name]
        elif target.is_relative_to(config.docs_dir):
            # Pages of the reference are linked as the source has them, api/flows.rst.
            name = re.sub(r"(?<=^api/)(.*)\.rst$", r"\1.html", target.relative_to(config.docs_dir).as_posix())
        else:
            name = f"files/{name}"
        return f"{match[1]}{up}{name}{match[3]}"

    return LINK.sub(replaced, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """`semflow.flows.AffineCoupling`, or `AffineCoupling` where one room alone has it, leads to its reference."""
    names = _names()
    up = "../" * page.file.dest_uri.count("/")

    def linked(match: re.Match[str]) -> str:
        entry = names.get(match[1]) if match[1] else None
        if entry is None:
            return match[0]
        return f'<a href="{up}api/{entry.uri}">{match[0]}</a>'

    return re.sub(r"<td\b.*?</td>", lambda cell: breakable(cell[0]), CODE.sub(linked, html), flags=re.DOTALL)


def breakable(cell: str) -> str:
    """A table's cell whose code may go on in a new line after / and _ and ::, for narrow columns and windows."""
    ends = {True: r"(::|[/_,.])(?=\w)", False: r"(::|[/_,])(?=\w)"}  # a name goes on after a dot, a file does not
    return CELL_CODE.sub(lambda code: re.sub(ends[code[0].startswith("semflow.")], r"\1<wbr>", code[0]), cell)


def _outside(folder: Path, target: str, docs: Path) -> str | None:
    path = (folder / target).resolve()
    if "://" in target or not path.is_file() or not path.is_relative_to(ROOT) or path.is_relative_to(docs):
        return None
    name = path.relative_to(ROOT).as_posix()
    return None if name in PAGES else name


def _names() -> dict[str, Entry]:
    """Full names; and last parts that are of one entry only and no common word: with a capital or an underscore."""
    entries = read_inventory(Path(os.environ["SEMFLOW_REFERENCE"]))
    entries.pop("semflow", None)
    short: dict[str, dict[str, Entry]] = {}  # by address: a class stands also under the name of its file
    for name, entry in entries.items():
        last = name.rpartition(".")[2]
        if entry.kind in ("py:class", "py:function", "py:exception", "py:data") and re.search("[A-Z_]", last):
            short.setdefault(last, {})[entry.uri] = entry
    return {**{last: next(iter(found.values())) for last, found in short.items() if len(found) == 1}, **entries}
