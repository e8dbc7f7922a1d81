"""Memory: freed blocks, which are kept or go back to the system, and errors that name the batch size to try."""

import ctypes
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

START = "out of memory"
PARTS = (START, "DefaultCPUAllocator", "not enough memory", "ALLOC_FAILED")
"""Parts of the messages with which torch reports that a GPU or a CPU is out of memory."""


TRIMMED = 8
"""Batches of a pass after which freed memory is returned."""


def trimming(batches: Iterable[T]) -> Iterator[T]:
    """Yield batches, and return freed memory to the system after every eighth one.

    What a pass keeps of its batches lies between large temporary blocks. Without this, glibc keeps the gaps between
    them, and memory grows with every batch by far more than what is kept. On other systems nothing is done.
    """
    trim = _of_glibc("malloc_trim")
    for number, batch in enumerate(batches, 1):
        yield batch
        if trim is not None and number % TRIMMED == 0:
            trim(0)


_KEPT = {"M_MMAP_THRESHOLD": (-3, 2**25), "M_TRIM_THRESHOLD": (-1, 2**30), "M_ARENA_MAX": (-8, 1)}


def keep_freed_memory() -> None:
    """Let this process use the memory of freed blocks of up to 32 MiB again; see `trimming` for when it is returned.

    By default, glibc returns it to the system, which clears every page before it is used again. That takes a sixth of
    the time in which images are scored. All threads share one pool. On other systems nothing is done.
    """
    set_option = _of_glibc("mallopt")
    if set_option is not None:
        for option, value in _KEPT.values():
            set_option(option, value)


@functools.cache
def _of_glibc(name: str) -> Callable[..., int] | None:
    """Return a function of glibc, or None without it."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory is full.

    Example:
        >>> is_out_of_memory(RuntimeError("MPS backend out of memory")), is_out_of_memory(ValueError("wrong"))
        (True, False)
    """
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or (isinstance(error, RuntimeError) and any(part in str(error) for part in PARTS))


def memory_advice(error: BaseException) -> str | None:
    """Return the advice that `suggesting` has added to an error, or None.

    Example:
        >>> try:
        ...     with suggesting(8):
        ...         raise MemoryError
        ... except MemoryError as error:
        ...     memory_advice(error)
        'out of memory at a batch size of 8; try 4'
    """
    return next((note for note in getattr(error, "__notes__", ()) if note.startswith(START)), None)


@contextmanager
def suggesting(batch_size: int, least: int = 1, more: str = "") -> Iterator[None]:
    """Add half the batch size, if that is at least `least`, or other advice, to an error for lack of memory.

    The innermost block decides. `more` is further advice for a smaller batch.
    """
    try:
        yield
    except Exception as error:
        _advise(error, batch_size, least, more)
        raise


def per_batch(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function of a batch do what `suggesting` does.

    The batch is the first argument that is a tensor, a list of tensors or has `images`.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            _advise(error, next((size for size in map(_size, (*args, *kwargs.values())) if size), 1))
            raise

    return call


def _advise(error: Exception, batch_size: int, least: int = 1, more: str = "") -> None:
    if is_out_of_memory(error) and memory_advice(error) is None:
        smaller = batch_size // 2
        advice = f"{smaller}{more}" if smaller >= least else "a smaller image_size or a smaller backbone"
        error.add_note(f"{START} at a batch size of {batch_size}; try {advice}")


def _size(batch: Any) -> int:
    batch = getattr(batch, "images", batch)
    batch = batch[0] if isinstance(batch, list | tuple) and batch else batch
    return int(batch.shape[0]) if getattr(batch, "shape", ()) else 0
