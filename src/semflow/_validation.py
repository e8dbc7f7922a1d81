"""Checks of arguments against their annotations."""

import functools
import inspect
import math
import numbers
import os
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from semflow.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")

LARGEST = 2**63 - 1
"""Largest integer of torch."""

Size = int | tuple[int, int]
"""Size of images in pixels: one side of a square, or height and width."""

_WORDS: dict[object, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "a string",
    os.PathLike: "a path",
    types.NoneType: "None",
}


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, which is a regular one.

    Example:
        >>> counted(1, "image"), counted(3, "good image")
        ('1 image', '3 good images')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def kind_of(value: object) -> str:
    """Return the name of a value's class, or that of a class itself, for error messages.

    Example:
        >>> kind_of(1.5), kind_of(float)
        ('float', 'the class float')
    """
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments of every call by their annotations; a wrong type raises ConfigError.

    Checked are bool, int, float, str, paths, None, Literal and groups of settings, and tuples, sequences and unions of
    these; other annotations, such as tensors and modules, are not checked, nor are ranges. Numbers must be finite and
    may be of numpy; True is not accepted as a number; a list is accepted as a tuple.

    Example:
        >>> @checked
        ... def stack(blocks: int, clamp: float = 2.0) -> int: ...
        >>> stack("eight")
        Traceback (most recent call last):
        ...
        semflow.errors.ConfigError: blocks must be a whole number, but got 'eight'
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        # An unknown name is Python's TypeError, as for every other function.
        check_arguments(function, signature.bind(*args, **kwargs).arguments)
        return function(*args, **kwargs)

    return call


def check_arguments(function: Callable[..., object], arguments: Mapping[str, object]) -> None:
    """Raise ConfigError for the first argument that is not of its annotated type; see `checked`."""
    hints = _hints(function)
    for argument, value in arguments.items():
        hint = hints.get(argument, Any)
        if not _fits(value, hint):
            default = inspect.signature(function).parameters[argument].default
            advice = "" if default is inspect.Parameter.empty else f"; leave it out for {default!r}"
            advice += "" if not isinstance(value, int) or abs(value) <= LARGEST else f"; the largest is {LARGEST}"
            raise ConfigError(f"{argument} must be {_described(hint)}, but got {reprlib.repr(value)}{advice}")


class Settings:
    """Base class of frozen dataclasses that hold settings: checks fields by their annotations, turns lists into tuples.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Blocks(Settings):
        ...     kernels: tuple[int, ...] = (3, 1)
        >>> Blocks([5, 1])
        Blocks(kernels=(5, 1))
    """

    choice: ClassVar[str | None] = None
    """Name that chooses this group among those of an argument; None for the first of them."""

    def __post_init__(self) -> None:
        check_arguments(type(self).__init__, vars(self))
        for name, value in vars(self).items():
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))


def height_and_width(size: Size | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a size.

    Example:
        >>> height_and_width(256), height_and_width((256, 384))
        ((256, 256), (256, 384))
    """
    height, width = size if isinstance(size, Sequence) else (size, size)
    return int(height), int(width)


def plain_size(size: Size | Sequence[int]) -> Size:
    """Return one number for a square, and otherwise height and width.

    Example:
        >>> plain_size((256, 256)), plain_size([256, 384])
        (256, (256, 384))
    """
    height, width = height_and_width(size)
    return height if height == width else (height, width)


def at_least(least: int, **numbers: float) -> None:
    """Raise ConfigError for the first number that is below `least`; keywords are the names in the message."""
    for name, value in numbers.items():
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, but got {value}")


def positive(**numbers: float) -> None:
    """Raise ConfigError for the first number that is not positive; keywords are the names in the message."""
    for name, value in numbers.items():
        if not value > 0:
            raise ConfigError(f"{name} must be positive, but got {value}")


@functools.cache
def _hints(function: Callable[..., object]) -> dict[str, Any]:
    return typing.get_type_hints(function)


def _fits(value: Any, hint: Any) -> bool:
    origin, members = get_origin(hint) or hint, get_args(hint)
    if origin is Literal:  # by type and by value: 1 is not True
        return any(type(value) is type(known) and value == known for known in members)
    if origin in (Union, types.UnionType):
        return any(_fits(value, member) for member in members)
    if origin is tuple and members and members[-1] is not Ellipsis:
        return isinstance(value, tuple | list) and len(value) == len(members) and all(map(_fits, value, members))
    if origin in (tuple, Sequence):
        fits = isinstance(value, tuple | list if origin is tuple else Sequence) and not isinstance(value, str)
        return fits and all(_fits(item, member) for member in members[:1] for item in value)
    if origin is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool) and abs(int(value)) <= LARGEST
    if origin is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and _is_finite(value)
    if origin in _WORDS or (isinstance(origin, type) and issubclass(origin, Settings)):
        return isinstance(value, origin)
    return True


def _is_finite(value: numbers.Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False


def _described(hint: Any) -> str:
    origin, members = get_origin(hint) or hint, get_args(hint)
    if origin is Literal:
        names = [str(member) for member in members]
        return " or ".join(names) if len(names) < 3 else f"one of {', '.join(names)}"
    if origin in (Union, types.UnionType):
        *words, last = map(_described, members)
        return f"{', '.join(words)} or {last}"
    if origin is tuple and members and members[-1] is not Ellipsis:
        return f"({', '.join(map(_described, members))})"
    if origin in (tuple, Sequence) and members:
        return f"a {origin.__name__.lower()} with {_described(members[0])} in each place"
    return _WORDS.get(origin, getattr(hint, "__name__", str(hint)))
