"""Finished cells as files: a run that is killed, repeated or extended does nothing twice."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from semflow.files import write_atomic

__all__ = ["CellStore", "digest"]

FORMAT = 1


def digest(config: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits of a configuration, whatever the order of its keys; tuples are lists.

    Raises:
        TypeError, ValueError: the configuration holds what JSON cannot say exactly.
    """
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class CellStore:
    """A folder with one JSON file a finished cell, named by the hash of all that the cell's result depends on.

    A file is written whole or not at all. One that is broken, or does not hold the configuration that its name says, is
    reported and counts as missing, so that its cell is done again.

    Args:
        folder: made when the first cell is written.
        notice: is told, in one line, of a broken file.
    """

    def __init__(self, folder: str | Path, notice: Callable[[str], object] = print) -> None:
        self.folder, self.notice = Path(folder), notice

    def path(self, config: Mapping[str, Any]) -> Path:
        """Where the cell of a configuration is kept."""
        return self.folder / f"{digest(config)}.json"

    def get(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """The kept cell (`config`, `result`, `record`), or None."""
        path = self.path(config)
        if not path.exists():
            return None
        try:
            cell: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            problem = _problem(cell, config)
        except (OSError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            self.notice(f"{path}: broken, its cell is done again ({problem})")
            return None
        return cell

    def put(self, config: Mapping[str, Any], result: Mapping[str, Any], record: Mapping[str, Any]) -> Path:
        """Keep a finished cell.

        Args:
            config: all that the result depends on.
            result: with its `metrics`.
            record: command, versions, machine, times.
        """
        cell = {"format": FORMAT, "config": config, "result": result, "record": record}
        return write_atomic(self.path(config), json.dumps(cell, indent=2, allow_nan=False) + "\n")


def _problem(cell: Any, config: Mapping[str, Any]) -> str:
    if not isinstance(cell, dict) or cell.get("format") != FORMAT:
        return f"expected an object of format {FORMAT}"
    if not isinstance(cell.get("config"), dict) or digest(cell["config"]) != digest(config):
        return "it holds another configuration than its name says"
    result = cell.get("result")
    metrics = result.get("metrics") if isinstance(result, dict) else None
    if not isinstance(metrics, dict) or not metrics:
        return "it holds no metrics"
    for name, value in metrics.items():
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            return f"{name} is no number"
    return "" if isinstance(cell.get("record"), dict) else "it holds no record"
