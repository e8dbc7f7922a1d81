"""How far a run of cells has come: a bar on a terminal, a line for each cell elsewhere."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

__all__ = ["Progress", "duration"]


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Progress:
    """A context that is told of each finished cell.

    Args:
        total: cells in all.
        done: those that were done before.
        work: the sum of what the others cost, in any unit (epochs times images).
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def cell(
        self, label: str, rows: int, seconds: float, work: float, metrics: Mapping[str, Any] | None, error: str = ""
    ) -> None:
        """A cell, which so many rows share, has ended, well with `metrics` or with an error."""
        self.done += rows
        self.worked += work
        elapsed = time.monotonic() - self.began
        left = elapsed * (self.work - self.worked) / self.worked if self.worked else 0.0
        if error:
            text = f"FAILED: {error}"
        else:
            text = "  ".join(f"{name} {value:.4f}" for name, value in (metrics or {}).items() if value is not None)
        rest = f", about {duration(left)} left" if self.done < self.total else ""
        line = f"[{self.done}/{self.total}] {label}: {text}  ({duration(seconds)}{rest})"
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
            self._bar.update(self._task, completed=self.done, description=rest.removeprefix(", "))
        else:
            print(line, file=sys.stderr, flush=True)
