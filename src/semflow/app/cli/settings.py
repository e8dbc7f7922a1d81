"""Recipe settings from the command line and from TOML files."""

import ast
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from semflow.errors import ConfigError
from semflow.recipes import plain_settings, resolve_settings

WORDS = {"true": True, "false": False, "none": "none"}


def parse_settings(recipe: Callable[..., object], words: Mapping[str, str]) -> dict[str, Any]:
    """Convert the words of `--set` to values: Python literals, true, false and none; other words are strings.

    A single value for a setting whose default is a tuple becomes a tuple.

    Example:
        >>> from semflow.recipes import sanflow
        >>> parse_settings(sanflow, {"backbone.strides": "8", "couplings.blocks": "4", "synthesis": "none"})
        {'backbone.strides': (8,), 'couplings.blocks': 4, 'synthesis': 'none'}
    """
    defaults = plain_settings(resolve_settings(recipe, {}))
    values: dict[str, Any] = {}
    for name, word in words.items():
        group, _, field = name.partition(".")
        default = defaults.get(group)
        if field:
            default = default.get(field) if isinstance(default, dict) else None
        value = _literal(word)
        values[name] = (value,) if isinstance(default, list) and not isinstance(value, tuple | list) else value
    return values


def _literal(word: str) -> object:
    try:
        return WORDS[word.lower()] if word.lower() in WORDS else ast.literal_eval(word)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return word


def read_config(path: Path) -> dict[str, Any]:
    """Read a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path} must be a readable file, but got {error.strerror or error}") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError(f"--config {path} must be a TOML file, but got an error: {error}") from None


def to_toml(options: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """Return options that are not None, and recipe arguments, as the text of a TOML file."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return tomli_w.dumps({k: v for k, v in given.items() if v is not None} | plain_settings(arguments))
