"""Output of the commands: text and tables on standard output, progress on standard error, and PNG files."""

import io
import os
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image

from semflow.files import write_atomic

T = TypeVar("T")


def say(text: str = "") -> None:
    """Print a line. The work goes on if nobody reads it any more, as in `semflow fit ... | head -1`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def decided(anomalous: int, images: int, rate: float) -> str:
    """Say how many images are called anomalous, at which false-alarm rate.

    >>> decided(2, 30, 0.05)
    '2 of 30 images are called anomalous, at a false-alarm rate of 5 %'
    >>> decided(1, 1, 0.1)
    'the image is called anomalous, at a false-alarm rate of 10 %'
    """
    verb = "is" if anomalous == 1 else "are"
    called = f"{anomalous or 'none'} of {images} images {verb} called anomalous"
    if images == 1:
        called = f"the image is called {'anomalous' if anomalous else 'normal'}"
    return f"{called}, at a false-alarm rate of {100 * rate:.3g} %"


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose first column is text and whose other columns are numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for index, name in enumerate(header):  # headers wrap at words, so that eight columns fit into 80 characters
        width = max(map(len, name.split()))
        table.add_column(name, justify="right" if index else "left", min_width=width, no_wrap=not index)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    with console.capture() as lines:
        console.print(table)
    say(lines.get().removesuffix("\n"))


def track(items: Iterable[T], title: str, total: int, *, terminal_only: bool = False) -> Iterator[T]:
    """Yield the items and show progress: a temporary bar on a terminal, otherwise one line per tenth or nothing."""
    if sys.stderr.isatty():
        from rich import console, progress

        yield from progress.track(items, title, total, console=console.Console(stderr=True), transient=True)
        return
    start, shown = time.monotonic(), 0
    for count, item in enumerate(items, 1):
        yield item
        tenth = 10 * count // max(total, 1)
        if not terminal_only and (tenth > shown or count == total):
            shown = tenth
            print(f"{title} {count}/{total}  {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a picture atomically."""
    buffer = io.BytesIO()
    # Little but runs repeats in the differences of neighboring pixels; a search for more takes three times as long.
    # A profile of the photograph would not be one of the heat map's colors.
    picture.save(buffer, format="PNG", icc_profile=None, compress_level=1, compress_type=zlib.Z_RLE)
    write_atomic(path, buffer.getvalue())
