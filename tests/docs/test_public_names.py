"""Public names have docstrings, public classes and functions examples, and described arguments exist."""

import dataclasses
import inspect
from collections.abc import Iterator
from importlib import import_module

import pytest

import semflow

MODULES = (
    "semflow",
    *(f"semflow.{name}" for name in semflow._MODULES if name not in ("app", "files")),
    *(f"semflow.app.{name}" for name in semflow.app.__all__),
)
NEEDS_RAY = {"semflow.app.scale.Workers", "semflow.app.scale.connected", "semflow.app.scale.score_blocks"}
NEEDS_NETWORK = {"semflow.app.hub.pull", "semflow.app.hub.push"}
IN_OTHER_EXAMPLES = {"semflow.load", "semflow.recipes.load"}  # in that of save


def documented(module: str) -> Iterator[tuple[str, object]]:
    """Yield the public classes and functions of a module."""
    home = import_module(module)
    for name in home.__all__:
        thing = getattr(home, name)
        of_semflow = getattr(thing, "__module__", "").startswith("semflow")
        if of_semflow and (inspect.isclass(thing) or inspect.isfunction(thing)):
            yield f"{module}.{name}", thing


def needs_no_example(name: str, thing: object) -> bool:
    """Return True for protocols and for groups of settings, which the examples of recipes use."""
    settings = name.startswith("semflow.recipes.") and dataclasses.is_dataclass(thing)
    return settings or bool(getattr(thing, "_is_protocol", False)) or name in NEEDS_RAY | IN_OTHER_EXAMPLES


@pytest.mark.parametrize("module", MODULES)
def test_public_names_have_docstrings_with_examples(module: str) -> None:
    things = dict(documented(module))
    assert [name for name, thing in things.items() if not (thing.__doc__ or "").strip()] == []
    without = [name for name, thing in things.items() if ">>>" not in (thing.__doc__ or "")]
    assert [name for name in without if not needs_no_example(name, things[name])] == []


def test_examples_run_unless_they_need_the_network() -> None:
    public = (pair for module in MODULES for pair in documented(module))
    assert {name for name, thing in public if "+SKIP" in inspect.getsource(thing)} == NEEDS_NETWORK  # type: ignore[arg-type]


def test_classes_and_functions_are_found() -> None:
    names = {name for module in MODULES for name, _ in documented(module)}
    assert len(names) > 180
    assert {"semflow.fit", "semflow.flows.AffineCoupling", "semflow.metrics.aupro"} <= names


def test_described_arguments_exist() -> None:
    wrong, seen = [], 0
    for module in MODULES:
        for name, thing in documented(module):
            described = inspect.getdoc(thing).partition("\nArgs:\n")[2].partition("\n\n")[0]
            heads = [line for line in described.splitlines() if line.startswith("    ") and line[4] != " "]
            given = {word.strip() for line in heads for word in line.partition(":")[0].split(",")}
            try:
                known = {parameter.lstrip("*") for parameter in inspect.signature(thing).parameters}
            except ValueError:
                continue
            seen += len(given & known)
            wrong += [f"{name}: {word}" for word in sorted(given - known) if word.isidentifier()]
    assert wrong == []
    assert seen > 400
