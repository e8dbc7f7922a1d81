"""The processes that a launcher such as torchrun has started."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from semflow.errors import ConfigError, DeviceError

from .distributed import ALONE, Processes
from .loading import check_device

__all__ = ["launched_processes"]

# Whoever comes late has been looking at its images.
PATIENCE = timedelta(hours=1)


@contextmanager
def launched_processes(device: str = "auto") -> Iterator[tuple[Processes, torch.device]]:
    """The processes that were launched together, and this one's device; alone where none were.

    The launcher says so by the environment variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. The
    processes speak NCCL where the device is CUDA, each with the GPU of its local rank, and gloo elsewhere.

    Args:
        device: `auto`, `cpu` or `cuda`, as of `semflow.fit`.

    Raises:
        ConfigError: the environment is not complete, or the processes do not find each other.
        DeviceError: there is no such device, or there are more processes than GPUs.

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
        raise ConfigError(f"environment has WORLD_SIZE but not {', '.join(missing)}; start the processes with torchrun")
    own = _own_device(device)
    # Objects travel by gloo, which takes no GPU memory for them.
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    try:
        store, rank, count = next(rendezvous("env://", timeout=PATIENCE))
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()).split(" Exception raised from")[0]
        raise ConfigError(f"the processes that were launched together do not find each other: {reason}") from None
    processes = Processes(dist.group.WORLD, store)
    try:
        with _ended_at_once():
            yield processes, own
    finally:
        # gloo's threads end with the last reference to the group. Threads left at exit can abort the process.
        processes.group = processes.store = store = None
        dist.destroy_process_group()


@contextmanager
def _ended_at_once() -> Iterator[None]:
    """When another has failed, the launcher ends this one at once, and not after a collective that will not end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        if before is not None:  # None where it was not set from Python
            signal.signal(signal.SIGTERM, before)


def _own_device(device: str) -> torch.device:
    """A GPU for each process of a machine, before anything is made on one."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return check_device("cpu")
    number, there = _number("LOCAL_RANK", 0), torch.cuda.device_count()
    if device in ("auto", "cuda") and 0 < there <= number:
        raise DeviceError(
            f"device {device} must be a GPU for each process, but there are {there}; start {there} of them"
        )
    own = check_device(f"cuda:{number}" if device in ("auto", "cuda") else device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    return own


def _number(name: str, default: int) -> int:
    word = os.environ.get(name, str(default))
    if not word.isdecimal():
        raise ConfigError(f"environment variable {name} must be a number, but got {word!r}; start with torchrun")
    return int(word)
