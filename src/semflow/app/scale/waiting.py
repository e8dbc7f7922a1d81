"""The rows of a pipeline, waited for no longer than machines are there that could make them."""

__all__ = ["PATIENCE", "rows_while_possible"]

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any

from semflow.errors import ProcessError

PATIENCE = 300.0
"""Seconds in which a machine that was lost may come back, where those that are left have no room for all workers."""
EVERY = 1.0


def rows_while_possible(rows: Iterable[Any], lacking: Callable[[], str], patience: float) -> Generator[Any, None, None]:
    """Pass rows on. When none comes for long and something is lacking, end: Ray would wait for it for ever.

    Args:
        rows: of a pipeline, which are asked for in a thread.
        lacking: says what is not there, or nothing.
        patience: seconds for which it may be lacking while no row comes.

    Raises:
        ProcessError: it is lacking.

    Example:
        >>> list(rows_while_possible([1, 2], lambda: "", 1.0))
        [1, 2]
    """
    found: queue.SimpleQueue[tuple[Any, BaseException | None, bool]] = queue.SimpleQueue()
    stop = threading.Event()

    def ask() -> None:
        iterator = iter(rows)
        try:
            for row in iterator:
                found.put((row, None, False))
                if stop.is_set():
                    break
            found.put((None, None, True))
        except BaseException as error:
            found.put((None, error, True))
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                with contextlib.suppress(Exception):
                    close()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    since, missing = time.monotonic(), ""
    try:
        while True:
            try:
                row, error, end = found.get(timeout=EVERY)
            except queue.Empty:
                missing = lacking()
                if not missing:
                    since = time.monotonic()
                elif time.monotonic() - since > patience:
                    raise ProcessError(missing) from None
                continue
            if error is not None:
                raise error
            if end:
                return
            since = time.monotonic()
            yield row
    finally:
        stop.set()
        asking.join(0 if missing else 5)
