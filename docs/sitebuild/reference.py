"""An extension of Sphinx for this library's docstrings and its rooms."""

import re
from importlib import import_module
from typing import Any, NamedTuple

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import semflow

__all__ = ["escaped", "public_names", "setup", "untyped"]

FIELD = type(NamedTuple("Pair", [("first", int)]).first)
TOKENS = re.compile(r"``.+?``|`[^`]+`|[|*\\]|(?<=\w)_(?!\w)")


def escaped(lines: list[str]) -> list[str]:
    """The lines with what reStructuredText would take for markup, as |x| and f(*args), marked as plain.

    Formulas of docstrings are written as one writes them in a comment. What is in backticks and the lines of examples
    (from >>> to the next empty line) stay as they are.
    """
    result, example = [], False
    for line in lines:
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        plain = line if example else TOKENS.sub(lambda m: m[0] if m[0].startswith("`") else "\\" + m[0], line)
        result.append(plain)
    return result


def untyped(lines: list[str], attribute: bool) -> list[str]:
    """Keep napoleon from taking what stands before a colon for a type, in `Returns:` and in an attribute's first line.

    Types stand in the annotations; the text is prose.
    """
    result = list(lines)
    for i, line in enumerate(lines):
        first = (i == 0 and attribute) or (i > 0 and lines[i - 1].strip() == "Returns:")
        if first and ":" in line:
            result[i] = re.sub(r"\S", lambda found: f": {found[0]}", line, count=1)
    return result


def public_names() -> dict[str, str]:
    """Where a name is defined, to where it is documented: semflow.flows.coupling.X to semflow.flows.X."""
    places = {}
    for room in (*semflow._MODULES, *(f"app.{name}" for name in semflow.app.__all__)):
        module = import_module(f"semflow.{room}")
        for name in module.__all__:
            thing = getattr(module, name)
            home = getattr(thing, "__module__", None)
            if isinstance(home, str) and home.startswith("semflow.") and home != module.__name__:
                places.setdefault(f"{home}.{getattr(thing, '__qualname__', name)}", f"{module.__name__}.{name}")
    return places


def _escape(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = untyped(escaped(lines), what in ("attribute", "data", "property"))


def _skip(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Fields of named tuples, which the class describes, and what torch asks for to print a module."""
    return True if isinstance(thing, FIELD) or name == "extra_repr" else None


def _resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: Element) -> Element | None:
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    public = app.semflow_names.get(target)
    if public is None and "." not in target:  # the annotations of one room name those of another
        ends = [name for name in app.semflow_names.values() if name.rpartition(".")[2] == target]
        public = ends[0] if len(ends) == 1 else None
    if public is None:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, contnode)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.semflow_names = public_names()
    app.connect("autodoc-process-docstring", _escape, priority=400)  # before napoleon, which writes markup itself
    app.connect("autodoc-skip-member", _skip)
    app.connect("missing-reference", _resolve, priority=400)
    return {"parallel_read_safe": True}
