"""Rows of a pipeline, with a time limit while the cluster lacks resources."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any

from semflow.errors import ProcessError

PATIENCE = 300.0
"""Seconds to wait for a lost machine to return if the others cannot run all workers."""
EVERY = 1.0


def rows_while_possible(rows: Iterable[Any], lacking: Callable[[], str], patience: float) -> Generator[Any, None, None]:
    """Yield rows of a pipeline, which a thread reads. Stop if none arrives while resources are missing.

    Ray would wait forever. After `patience` seconds, the message of `lacking` is raised as a ProcessError; it is "" if
    nothing is missing.

    Example:
        >>> list(rows_while_possible([1, 2], lambda: "", 1.0))
        [1, 2]
    """
    found: queue.SimpleQueue[tuple[Any, BaseException | None, bool]] = queue.SimpleQueue()
    stop = threading.Event()

    def ask() -> None:
        iterator: Any = iter(rows)
        try:
            for row in iterator:
                found.put((row, None, False))
                if stop.is_set():
                    break
            found.put((None, None, True))
        except BaseException as error:
            found.put((None, error, True))
        finally:
            with contextlib.suppress(Exception):  # not every iterator has this method
                iterator.close()

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
