"""Arguments of recipes as dotted settings, and as plain values for JSON and TOML."""

import inspect
import numbers
import os
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from torch import nn

from semflow._validation import Settings, check_arguments, kind_of
from semflow.errors import ConfigError

from .groups import Backbone

NONE = "none"
CHOICE = "type"


def plain_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments as nested dicts, lists, numbers and strings, which JSON and TOML can hold.

    None becomes "none". A module becomes `{"module": its class}`, a constructor of subnets `{"subnet": its name}`.
    `resolve_settings` is the inverse.

    Example:
        >>> plain_settings({"backbone": Backbone("resnet18", strides=(8, 16)), "statistics": None})
        {'backbone': {'name': 'resnet18', 'weights': 'hub', 'strides': [8, 16], ...}, 'statistics': 'none'}
    """
    return {name: _plain(name, value) for name, value in arguments.items()}


def _plain(name: str, value: object) -> Any:
    if value is None:
        return NONE
    if isinstance(value, Settings):
        values = {field.name: getattr(value, field.name) for field in fields(value)}  # type: ignore[arg-type]
        if values.get("subnet", ...) is None:  # which no file can set
            del values["subnet"]
        chosen = {} if value.choice is None else {CHOICE: value.choice}
        return chosen | {field: _plain(f"{name}.{field}", inner) for field, inner in values.items()}
    if isinstance(value, nn.Module):
        return {"module": f"{type(value).__module__}.{type(value).__qualname__}"}
    if name.endswith("subnet") and callable(value):
        made = getattr(value, "func", value)  # of a partial
        return {"subnet": f"{made.__module__}.{getattr(made, '__qualname__', type(made).__qualname__)}"}
    if isinstance(value, tuple | list):
        return [_plain(name, item) for item in value]
    if isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise ConfigError(f"{name} must be a number, string, tuple, group or module, but got {kind_of(value)}")


def setting_names(recipe: Callable[..., Any]) -> list[str]:
    """Return the names of all settings of a recipe, with the fields of its groups, such as `backbone.name`.

    Example:
        >>> def mine(backbone: Backbone = Backbone(), seed: int = 0) -> None: ...
        >>> setting_names(mine)
        ['backbone', 'backbone.name', ..., 'seed']
    """
    names = []
    for name in inspect.signature(recipe).parameters:
        known = (field.name for group in _groups(recipe, name) for field in fields(group))  # type: ignore[arg-type]
        names += [name, *(f"{name}.{field}" for field in known)]
    return list(dict.fromkeys(names))


def resolve_settings(recipe: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a recipe after applying settings to its defaults.

    Args:
        recipe: function with annotated parameters.
        settings: values by name. `group.field` sets one field of a group, and so does a nested dict. A group may also
            be replaced as a whole, be chosen by its name among several (`poisson`), be True for its defaults, or be
            None, False or "none" if the recipe allows None.

    Raises:
        ConfigError: If a name is unknown or a value is invalid.

    Example:
        >>> def mine(backbone: Backbone = Backbone(), seed: int = 0) -> None: ...
        >>> resolve_settings(mine, {"backbone.strides": (8,), "seed": 3})
        {'backbone': Backbone(name='wide_resnet50_2', weights='hub', strides=(8,), ...), 'seed': 3}
    """
    parameters = inspect.signature(recipe).parameters
    known = setting_names(recipe)
    arguments = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    flat = dict(_flattened(settings))
    for parameter in parameters:
        if len(_groups(recipe, parameter)) > 1 and f"{parameter}.{CHOICE}" in flat:
            flat[parameter] = flat.pop(f"{parameter}.{CHOICE}")
    for name, value in sorted(flat.items(), key=lambda item: "." in item[0]):
        if name not in known:
            raise ConfigError(f"settings must have known names, but got {name!r}; use some of {', '.join(known)}")
        parameter, _, field = name.partition(".")
        default, group = parameters[parameter].default, _group(recipe, parameter)
        if not field:
            if isinstance(value, str) and value == NONE:
                value = None
            elif group is not None and isinstance(value, bool):
                value = (default if isinstance(default, group) else group()) if value else None
            value = next((named() for named in _groups(recipe, parameter) if named.choice == value is not None), value)
            arguments[parameter] = complete(recipe, parameter, value)
            continue
        before = arguments.get(parameter)
        before = group() if before is None and parameter not in flat and group else before
        if not isinstance(before, Settings):
            raise ConfigError(f"{parameter} must be a group of settings to set {name}, but got {before!r}")
        if field not in vars(before):
            kind = type(before).__name__
            message = f"{parameter} must be a group with {field} to set {name}, but got {kind}; name another group"
            raise ConfigError(message)
        try:
            arguments[parameter] = replace(before, **{field: None if value == NONE else value})  # type: ignore[type-var]
        except ConfigError as error:
            message = f"{parameter}.{error}"
            raise ConfigError(message) from None
    check_arguments(inspect.unwrap(recipe), arguments)
    return arguments


def complete(recipe: Callable[..., Any], parameter: str, value: Any) -> Any:
    """Replace a backbone's name by the recipe's default group of that name; return other values unchanged."""
    if isinstance(value, str) and _group(recipe, parameter) is Backbone:
        default = inspect.signature(recipe).parameters[parameter].default
        return replace(default, name=value) if isinstance(default, Backbone) else Backbone(value)
    return value


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", True if isinstance(value, Mapping) else value


def _group(recipe: Callable[..., Any], parameter: str) -> type[Settings] | None:
    """Return the first class of settings among a parameter's annotated types."""
    return next(iter(_groups(recipe, parameter)), None)


def _groups(recipe: Callable[..., Any], parameter: str) -> list[type[Settings]]:
    """Return the classes of settings among a parameter's annotated types."""
    hint = typing.get_type_hints(inspect.unwrap(recipe)).get(parameter)
    return [m for m in (hint, *typing.get_args(hint)) if isinstance(m, type) and issubclass(m, Settings)]
