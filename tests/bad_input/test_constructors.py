"""Arguments of public constructors and recipes reject values of a wrong type and name the argument."""

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest

from helpers.bad_rows import SIZE
from helpers.recipe_cases import BUILT_IN
from semflow._validation import checked
from semflow.errors import ConfigError, SemflowError
from semflow.recipes import build as build_recipe

MODULES = ("nn", "flows", "bases", "objectives", "synthesis", "metrics", "features", "data", "detectors")
# Records that the library creates, and protocols.
PASSIVE = {"Evaluation", "FeatureExtractor", "Provenance", "Record", "Synthesis"}
# Classes with the constructors of torch.
FOREIGN = {"ChannelNorm", "SemanticNormal"}
WRONG: dict[object, tuple[object, ...]] = {
    bool: (1, "yes", None),
    int: ("3", 1.5, True, None, 10**30, [3]),
    float: ("0.1", True, None, float("nan"), float("inf"), 10**400, [0.1]),
    str: (3, None, ["a"]),
}


def kinds(hint: Any) -> set[object]:
    """Return the plain types that a hint allows, or an empty set if it allows other types."""
    origin = get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        members = [kinds(member) for member in get_args(hint)]
        return set().union(*members) if all(members) else set()
    if origin is Literal:
        return {Literal}
    if origin in (tuple, Sequence):
        return {tuple} if kinds(get_args(hint)[0]) else set()
    return {hint} if hint in (*WRONG, types.NoneType) else set()


def wrong_values(hint: Any) -> list[object]:
    allowed = kinds(hint)
    plain = allowed - {types.NoneType}
    if len(plain) != 1:
        return []
    (kind,) = plain
    values = {Literal: ("nonsense", 3, ["a"]), tuple: (3, "8", ("x",), {"a": 1})}.get(kind, WRONG.get(kind, ()))
    first = get_args(hint)[0] if kind is tuple else None
    values = tuple(value for value in values if not (kind is tuple and first is str and value == ("x",)))
    return [value for value in values if not (value is None and types.NoneType in allowed)]


def constructors() -> Iterator[tuple[str, Callable[..., object], dict[str, Any]]]:
    """Yield public classes with options, recipes, and functions that build parts of a detector."""
    for part in MODULES:
        module = import_module(f"semflow.{part}")
        for name in module.__all__:
            kind = getattr(module, name)
            named_tuple = inspect.isclass(kind) and issubclass(kind, tuple)
            if inspect.isclass(kind) and not named_tuple and name not in PASSIVE | FOREIGN:
                yield f"{part}.{name}", kind, typing.get_type_hints(kind.__init__)
    for name in ("coupling_stack", "base_and_head"):
        function = getattr(import_module("semflow.flows" if name == "coupling_stack" else "semflow.bases"), name)
        yield name, function, typing.get_type_hints(function)
    for name, recipe in BUILT_IN.items():
        yield f"recipes.{name}", recipe, typing.get_type_hints(recipe)


def cases() -> Iterator[Any]:
    for name, build, hints in constructors():
        for argument, parameter in inspect.signature(build).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            values = wrong_values(hints.get(argument, Any))
            if values:
                yield pytest.param(build, argument, values, id=f"{name}-{argument}")


@pytest.mark.parametrize(("build", "argument", "values"), list(cases()))
def test_wrong_type_is_rejected_by_name(build: Callable[..., object], argument: str, values: list[object]) -> None:
    """Types are checked before anything is built, so the other arguments may be placeholders."""
    hints = dict(typing.get_type_hints(build.__init__ if inspect.isclass(build) else build))
    needed = {
        name: right_value(hints[name])
        for name, parameter in inspect.signature(build).parameters.items()
        if parameter.default is parameter.empty and name != argument
    }
    for value in values:
        with pytest.raises(ConfigError, match=rf"^{re.escape(argument)} must be ") as caught:
            build(**{**needed, argument: value})
        assert "but got" in str(caught.value)


def right_value(hint: Any) -> object:
    """Return a value for a required argument."""
    kind = next(iter(kinds(hint) - {types.NoneType}), None)
    if kind is Literal:
        return get_args(hint)[0]
    if get_origin(hint) is Sequence and kind is None:
        return []
    if get_origin(hint) is Sequence and get_origin(get_args(hint)[0]) is Sequence:
        return [[8]]
    return {bool: True, int: 4, float: 0.5, str: "a", tuple: [8]}.get(
        kind, "a"
    )  # a path, or a type that is not checked


def test_cases_cover_every_module_and_recipe() -> None:
    seen = [case.id for case in cases()]
    assert len(seen) > 150
    for part in (
        "nn.",
        "flows.",
        "bases.",
        "objectives.",
        "synthesis.",
        "metrics.",
        "features.",
        "data.",
        "detectors.",
    ):
        assert any(name.startswith(part) for name in seen), part
    assert all(any(name.startswith(f"recipes.{recipe}-") for name in seen) for recipe in BUILT_IN)


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        pytest.param(build, argument, id=f"{name}-{argument}")
        for name, build, hints in constructors()
        if name.startswith(("nn.", "flows.", "coupling_stack"))
        for argument in inspect.signature(build).parameters
        if kinds(hints.get(argument)) - {types.NoneType} == {int}
    ],
)
def test_negative_number_is_rejected_by_name(build: Callable[..., object], argument: str) -> None:
    hints = typing.get_type_hints(build.__init__ if inspect.isclass(build) else build)
    needed = {
        name: right_value(hints[name])
        for name, parameter in inspect.signature(build).parameters.items()
        if parameter.default is parameter.empty and name != argument
    }
    with pytest.raises(ConfigError, match=rf"^{argument}\b.* must be .*-1"):
        build(**{**needed, argument: -1})


OUT_OF_RANGE = {
    "image_size": -1,
    "strides": (-8,),
    "top": 2.0,
    "mode": -1.0,
    "kl": -1.0,
    "margin": 0.0,
    "steps": -1,
    "hidden": 0,
    "hidden_ratio": -0.5,
}


@pytest.mark.parametrize(
    ("recipe", "argument"),
    [
        (name, each)
        for name, make in BUILT_IN.items()
        for each in OUT_OF_RANGE
        if each in inspect.signature(make).parameters
    ],
)
def test_number_out_of_range_is_rejected(recipe: str, argument: str) -> None:
    value = OUT_OF_RANGE[argument]
    small = {"backbone": "test_efficientnet", "backbone.weights": "random", "image_size": SIZE}
    with pytest.raises(SemflowError, match=argument.rstrip("s")):
        build_recipe(recipe, {**small, argument: value})


@checked
def options(
    count: int,
    share: float = 0.5,
    name: str | None = None,
    pair: tuple[int, int] = (1, 2),
    form: Literal["a", "b"] = "a",
    sizes: Sequence[float] = (),
    other: np.ndarray | None = None,
) -> tuple[object, ...]:
    return count, share, name, pair, form, sizes, other


def test_valid_arguments_are_unchanged() -> None:
    array = np.zeros(3)
    given = (np.int64(3), 1, None, [1, 2], "b", range(3), array)
    assert all(got is expected for got, expected in zip(options(*given), given, strict=True))
    assert options(2, np.float32(0.5))[1] == 0.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": "3"}, "count must be a whole number, but got '3'"),
        ({"count": 2**64}, "the largest is 9223372036854775807"),
        ({"share": float("nan")}, "share must be a finite number, but got nan; leave it out for 0.5"),
        ({"name": 3}, "name must be a string or None, but got 3"),
        ({"pair": (1,)}, r"pair must be \(a whole number, a whole number\), but got \(1,\)"),
        ({"form": "c"}, "form must be a or b, but got 'c'"),
        ({"sizes": "12"}, "sizes must be a sequence with a finite number in each place"),
    ],
)
def test_error_names_argument_and_expected_type(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(**{"count": 1, **wrong})


def test_containers_of_any_items_are_not_looked_into() -> None:
    @checked
    def plain(pair: tuple = (), items: Sequence | None = None) -> tuple[object, ...]:
        return pair, items

    assert plain((1, "a"), [None, 2.5]) == ((1, "a"), [None, 2.5])
    assert plain(()) == ((), None)


def test_unknown_argument_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="blobs"):
        options(1, blobs=3)  # type: ignore[call-arg]
