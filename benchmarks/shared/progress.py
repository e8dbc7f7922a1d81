"""Progress of a run of cells: a bar in a terminal, one line per cell elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any, Self


def duration(seconds: float) -> str:
    """Return seconds as text in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Progress:
    """Context manager that reports each finished cell.

    Args:
        total: number of cells.
        done: number of cells that were finished before.
        work: the sum of the costs of the others, in any unit.
    """

    def __init__(self, total: int, done: int, work: float) -> None:
        self.total, self.done, self.work, self.worked = total, done, work, 0.0
        self.began = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Bar(*columns, TextColumn("{task.description}"), console=Console(stderr=True))
            self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def cell(self, label: str, seconds: float, cost: float, metrics: Mapping[str, Any], error: str = "") -> None:
        """Report a cell that has metrics or an error."""
        self.done += 1
        self.worked += cost
        text = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if value is not None)
        left = (time.monotonic() - self.began) * (self.work - self.worked) / self.worked if self.worked else 0.0
        rest = f", about {duration(left)} left" if self.done < self.total else ""
        failed = f"FAILED: {error}" if error else text
        line = f"[{self.done}/{self.total}] {label}: {failed}  ({duration(seconds)}{rest})"
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(line, highlight=False, markup=False)
            self._bar.update(self._task, completed=self.done, description=rest.removeprefix(", "))
