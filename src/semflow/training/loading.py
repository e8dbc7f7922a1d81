"""Batches out of a data set, for every pass that a detector makes over one."""

from collections.abc import Iterator, Sequence, Sized
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from semflow.data import Batch, collate
from semflow.errors import DataError, DeviceError

from .distributed import ALONE, Processes

__all__ = ["Parts", "batches", "check_device", "dealt_batches", "split_batches"]


class Parts(Sampler[list[int]]):
    """The batches of a pass as lists of positions, of which a pass may leave out the first.

    Args:
        batches: positions in the data set.

    Example:
        >>> parts = split_batches(5, 2)
        >>> parts.start = 1
        >>> list(parts), len(parts)
        ([[2, 3], [4]], 3)
    """

    def __init__(self, batches: Sequence[Sequence[int]]) -> None:
        self.batches = [list(batch) for batch in batches]
        self.start = 0

    def __iter__(self) -> Iterator[list[int]]:
        # For an empty part any image comes: a step must be taken, in which it does not count.
        return iter(batch or [0] for batch in self.batches[self.start :])

    def __len__(self) -> int:
        return len(self.batches)


def split_batches(count: int, batch_size: int, processes: Processes = ALONE) -> Parts:
    """Batches in the order of `count` positions, and of each the part of this process, which may be empty."""
    return Parts([processes.part(batch) for batch in _batches(count, batch_size)])


def dealt_batches(count: int, batch_size: int, processes: Processes = ALONE) -> Parts:
    """Every n-th batch, for a pass whose batches do not meet."""
    return Parts(processes.deal(_batches(count, batch_size)))


def batches(dataset: Dataset[Any], batch_size: int, workers: int = 0, parts: Parts | None = None) -> DataLoader[Batch]:
    """Batches in the order of the data set, or as `parts` has them.

    Raises:
        DataError: the data set is empty.
    """
    count = len(cast(Sized, dataset))
    if not count:
        raise DataError("dataset must hold at least one image, but is empty")
    parts = split_batches(count, batch_size) if parts is None else parts
    return DataLoader(dataset, batch_sampler=parts, num_workers=workers, collate_fn=collate)


def _batches(count: int, batch_size: int) -> list[range]:
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def check_device(device: str | torch.device) -> torch.device:
    """The device, `auto` being CUDA where there is one.

    Raises:
        DeviceError: no such device on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"device {device} is not available on this machine, use auto or cpu") from error
    return chosen
