"""What the commands share to show their work: tables on standard output, progress on standard error."""

__all__ = ["print_table", "say", "track"]

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def say(text: str = "") -> None:
    """A line on standard output."""
    print(text, flush=True)


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on standard output; the first column is text, the others are numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for index, name in enumerate(header):  # headers wrap at words, so that eight columns fit a terminal of 80
        table.add_column(name, justify="right" if index else "left", min_width=max(map(len, name.split())))
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)


def track(items: Iterable[T], what: str, total: int, *, quiet_elsewhere: bool = False) -> Iterator[T]:
    """Show how far a loop has come: a bar on a terminal that goes when it is done, elsewhere a line at each tenth.

    Args:
        items: passed through.
        what: such as "scoring".
        total: how many items there are.
        quiet_elsewhere: show nothing where standard error is no terminal.
    """
    if sys.stderr.isatty():
        yield from _bar(items, what, total)
    elif quiet_elsewhere:
        yield from items
    else:
        yield from _lines(items, what, total)


def _bar(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, total=total)


def _lines(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    start, shown = time.monotonic(), 0
    for count, item in enumerate(items, 1):
        yield item
        tenth = 10 * count // max(total, 1)
        if tenth > shown or count == total:
            shown = tenth
            print(f"{what} {count}/{total}  {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
