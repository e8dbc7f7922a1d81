"""Progress of training: a bar on a terminal, a few plain lines elsewhere."""

import sys
import time
from contextlib import ExitStack
from typing import Any


class Progress(ExitStack):
    """Context manager that shows progress on standard error.

    Args:
        epochs: number of epochs.
        done: epochs finished by an earlier run.
        show: False shows nothing.
    """

    def __init__(self, epochs: int, done: int = 0, show: bool = True) -> None:
        super().__init__()
        self.epochs, self.show = epochs, show
        self._start, self._done = time.monotonic(), done
        self._bar: Any = None
        self._task: Any = None
        if show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            parts = TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs  {task.description}")
            self._bar = Bar(*parts, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task("", total=epochs, completed=done)
            self.enter_context(self._bar)

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Show that `step` of `steps` of an epoch are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=epoch + step / steps)

    def epoch(self, record: dict[str, Any]) -> None:
        """Show that an epoch is done; `record` is its line of the log."""
        text = f"loss {record['loss']:.4f}"
        if record.get("clipped"):
            text += f"  {record['clipped']} of {record['steps']} steps clipped"
        if self._bar is not None:
            self._bar.update(self._task, completed=record["epoch"], description=text)
        elif self.show and (record["epoch"] == self.epochs or record["epoch"] % max(1, self.epochs // 10) == 0):
            elapsed = time.monotonic() - self._start
            left = elapsed / max(1, record["epoch"] - self._done) * (self.epochs - record["epoch"])
            times = f"{elapsed:.0f} s elapsed, about {left:.0f} s left"
            print(f"epoch {record['epoch']}/{self.epochs}  {text}  {times}", file=sys.stderr, flush=True)
