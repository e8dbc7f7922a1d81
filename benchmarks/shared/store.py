"""The finished cells of a study: one JSON object per line of a file to which every process appends."""

import fcntl
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Kept = dict[str, Any]
"""A cell as read: `row`, `category`, `seed`, `settings`, `result` (with `metrics`) and `record`."""


class Key(NamedTuple):
    """The name of a cell within its study."""

    row: str
    category: str
    seed: int

    def __str__(self) -> str:
        return f"{self.row}, {self.category}, seed {self.seed}"


class CellStore:
    """The file `cells.jsonl` of a study.

    A cell is appended under a lock, so several processes can write. A killed process leaves at most an incomplete last
    line; reading skips such a line with a notice, and its cell is measured again.

    Args:
        path: created with its folder when the first cell is appended.
        notice: called with one line about each skipped line and each cell whose settings differ.
    """

    def __init__(self, path: str | Path, notice: Callable[[str], object] = print) -> None:
        self.path, self.notice = Path(path), notice
        self._read: tuple[int, dict[Key, list[Kept]]] = (0, {})
        self._told: set[str] = set()

    def read(self) -> dict[Key, list[Kept]]:
        """Return all cells by key, the oldest of each key first."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size != self._read[0]:
            cells: dict[Key, list[Kept]] = {}
            for number, line in enumerate(self.path.read_bytes().splitlines(), 1):
                try:
                    cell = json.loads(line)
                    problem = _problem(cell)
                except ValueError as error:
                    problem = str(error)
                if not problem:
                    cells.setdefault(Key(cell["row"], cell["category"], cell["seed"]), []).append(cell)
                elif line:
                    self._tell(f"{self.path}: skipped line {number}, which is not a complete cell ({problem})")
            self._read = (size, cells)
        return self._read[1]

    def latest(self) -> dict[Key, Kept]:
        """Return the newest cell of each key, whatever its settings."""
        return {key: cells[-1] for key, cells in self.read().items()}

    def find(self, key: Key, settings: Mapping[str, Any]) -> Kept | None:
        """Return the newest cell of a key that was measured with these settings, or None.

        Args:
            key: the cell.
            settings: compared name by name; a kept cell may have further ones.
        """
        cells = self.read().get(key, [])
        wanted = json.loads(json.dumps(settings, allow_nan=False))
        for cell in reversed(cells):
            if all(name in cell["settings"] and cell["settings"][name] == wanted[name] for name in wanted):
                return cell
        if cells:
            kept = cells[-1]["settings"]
            changes = [
                f"{name} {kept.get(name)} -> {wanted[name]}" for name in wanted if kept.get(name) != wanted[name]
            ]
            self._tell(f"{key}: not reused, because its settings changed ({', '.join(changes)})")
        return None

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self.notice(line)

    def append(
        self, key: Key, settings: Mapping[str, Any], result: Mapping[str, Any], record: Mapping[str, Any]
    ) -> None:
        """Add a finished cell.

        Args:
            key: the cell.
            settings: everything given by the command that the result depends on.
            result: with its `metrics`.
            record: command, commit, versions and machine.
        """
        cell = {**key._asdict(), "settings": settings, "result": result, "record": record}
        line = json.dumps(cell, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a writer was killed
                    line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def _problem(cell: Any) -> str:
    """Return why a line is not a cell, or an empty string."""
    types = {"row": str, "category": str, "seed": int, "settings": dict, "result": dict, "record": dict}
    if not isinstance(cell, dict) or not all(isinstance(cell.get(name), kind) for name, kind in types.items()):
        return f"expected {', '.join(types)}"
    metrics = cell["result"].get("metrics")
    if not isinstance(metrics, dict) or not metrics:
        return "no metrics"
    wrong = [n for n, v in metrics.items() if v is not None and not (isinstance(v, int | float) and math.isfinite(v))]
    return f"{wrong[0]} is not a finite number" if wrong else ""
