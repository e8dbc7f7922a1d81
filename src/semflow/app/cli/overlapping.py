"""Files that are read and written on other threads while images are scored."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NoReturn, TypeVar

T = TypeVar("T")
WRITERS = 4


def ahead(batches: Iterable[T], overlap: bool = True) -> Generator[T, None, None]:
    """Yield batches, each of which is made on another thread while the one before is used."""
    if not overlap:
        yield from batches
        return
    iterator, end = iter(batches), object()
    with ThreadPoolExecutor(1) as reader:
        following: Future[object] = reader.submit(next, iterator, end)
        while (batch := following.result()) is not end:
            following = reader.submit(next, iterator, end)
            yield batch  # type: ignore[misc]


def behind(batches: Iterable[Iterable[Callable[[], T]]], overlap: bool = True) -> Generator[T, None, None]:
    """Make the calls of each batch on other threads while the next batch is made, and yield their results in order.

    An error of a call or of a batch comes after the results of all calls before it, and no call begins after it is
    raised.
    """
    if not overlap:
        yield from (call() for batch in batches for call in batch)
        return
    writer, begun = ThreadPoolExecutor(min(WRITERS, os.cpu_count() or 1)), deque[Future[T]]()
    try:
        for batch in _with_error(batches):
            last = len(begun)
            begun.extend(map(writer.submit, batch))
            for _ in range(last):
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        writer.shutdown(cancel_futures=True)  # waits for calls that have begun


def _with_error(batches: Iterable[Iterable[Callable[[], T]]]) -> Iterator[Iterable[Callable[[], T]]]:
    """Yield batches, and an error as a last call that raises it."""
    try:
        yield from batches
    except Exception as error:
        yield [partial(_raise, error)]


def _raise(error: Exception) -> NoReturn:
    raise error
