"""Processes started by a launcher such as torchrun."""

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from semflow._validation import counted
from semflow.errors import ConfigError, DeviceError

from .distributed import ALONE, Processes
from .loading import check_device

TIMEOUT = timedelta(hours=1)  # a process may check its images for long before the first collective
LEAVING = timedelta(minutes=5)  # the first process may write its results meanwhile
GRACE = 2.0  # seconds for the launchers of other nodes to notice that their processes have ended


@contextmanager
def launched_processes(device: str = "auto") -> Iterator[tuple[Processes, torch.device]]:
    """Connect the processes that a launcher started together; yield them and this process's device.

    The launcher sets the environment variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; without them
    there is a single process. Processes use NCCL on CUDA, each with the GPU of its local rank, and gloo elsewhere.
    They leave the block together: none closes its connections while another may still need them.

    Args:
        device: `auto`, `cpu` or `cuda`, as in `semflow.fit`.

    Example:
        >>> with launched_processes("cpu") as (processes, device):
        ...     processes.count, device.type
        (1, 'cpu')
    """
    if _number("WORLD_SIZE", 1) <= 1:
        yield ALONE, check_device(device)
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"environment must have WORLD_SIZE and {', '.join(missing)}, but got WORLD_SIZE only; start with torchrun"
        )
    own = _own_device(device)
    # Objects are sent by gloo, which needs no GPU memory for them.
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    import_module("torch.distributed.nn")  # imported later, its default arguments would keep the group to the end
    try:
        store, rank, count = next(rendezvous("env://", timeout=TIMEOUT))
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()).split(" Exception raised from")[0]
        raise ConfigError(f"processes must be able to connect, but got an error: {reason}") from None
    processes = Processes(dist.group.WORLD, store)
    done = False
    try:
        with _ended_at_once():
            yield processes, own
            done = True
            _meet(store, "finished", rank, range(count))
    finally:
        # gloo's threads end with the last reference to the group. Threads left at exit can abort the process.
        processes.group = processes.store = None
        dist.destroy_process_group()
        with _ended_at_once():
            _leave(store, rank, count if done else 0)
        store = None


def _meet(store: Any, place: str, rank: int, others: Iterable[int]) -> None:
    """Say that this process has come to a place, and wait for others.

    The work is done or has failed already, so nothing is an error here: the launcher reports processes that are lost.
    """
    with suppress(RuntimeError):
        store.set(f"{place} {rank}", "")
        if keys := [f"{place} {other}" for other in others]:
            store.wait(keys, LEAVING)


def _leave(store: Any, rank: int, count: int) -> None:
    """Let process 0 leave last, as it or its launcher owns the store; with count 0 there has been an error.

    The launchers of torchrun end when all have reported the end of their processes. If that of process 0 is not the
    last to report, it takes the store away from another one that still waits for it.
    """
    if not count:
        _meet(store, "finished", rank, ())  # others must not wait for this process
    _meet(store, "left", rank, range(count) if rank == 0 else ())
    if rank == 0 and count and _number("GROUP_WORLD_SIZE", 1) > 1:
        time.sleep(GRACE)


@contextmanager
def _ended_at_once() -> Iterator[None]:
    """Let the launcher's SIGTERM end this process at once instead of after a collective that cannot finish."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        if before is not None:  # None if it was not set from Python
            signal.signal(signal.SIGTERM, before)


def _own_device(device: str) -> torch.device:
    """Choose a GPU for each process of a machine."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return check_device("cpu")
    if device not in ("auto", "cuda"):
        raise DeviceError(
            f"device must be auto, cpu or cuda for several processes, each with its own GPU, but got {device}; choose "
            "GPUs with CUDA_VISIBLE_DEVICES"
        )
    number, there = _number("LOCAL_RANK", 0), torch.cuda.device_count()
    if 0 < there <= number:
        raise DeviceError(
            f"device {device} must have a GPU for each process, but got {counted(there, 'GPU')}; start "
            f"{there} process{'' if there == 1 else 'es'}"
        )
    own = check_device(f"cuda:{number}")
    torch.cuda.set_device(own)
    return own


def _number(name: str, default: int) -> int:
    word = os.environ.get(name, str(default))
    if not word.isdecimal():
        raise ConfigError(f"environment variable {name} must be a number, but got {word!r}; start with torchrun")
    return int(word)
