"""Batches of a data set, and the device that they are moved to."""

from collections.abc import Iterator, Sequence, Sized
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from semflow._defaults import own_device
from semflow.data import Batch, CheckedSamples
from semflow.data.samples import stack_samples
from semflow.errors import DataError, DeviceError

from .distributed import ALONE, Processes
from .workers import loader


class Parts(Sampler[list[int]]):
    """Batches of one pass over a data set, as lists of positions; the first `start` of them are skipped."""

    def __init__(self, batches: Sequence[Sequence[int]]) -> None:
        self.batches = [list(batch) for batch in batches]
        self.start = 0

    def __iter__(self) -> Iterator[list[int]]:
        # A process with an empty part takes the step with a placeholder image, which is not counted.
        return iter(batch or [0] for batch in self.batches[self.start :])

    def __len__(self) -> int:
        return len(self.batches)


def split_batches(count: int, batch_size: int, processes: Processes = ALONE, together: int = 1) -> Parts:
    """Return this process's part, which may be empty, of every batch of `count` positions; `together` make a list."""
    parts = [processes.part(batch) for batch in _batches(count, batch_size)]
    return Parts([list(chain(*parts[k : k + together])) for k in range(0, len(parts), together)])


def dealt_batches(count: int, batch_size: int, processes: Processes = ALONE) -> Parts:
    """Return every n-th batch of `count` positions, for passes whose batches are independent."""
    return Parts(processes.deal(_batches(count, batch_size)))


def batches(
    dataset: Dataset[Any], batch_size: int, workers: int = 0, parts: Parts | None = None, copy: bool = True
) -> DataLoader[Batch]:
    """Load batches in the order of the data set, or as `parts` lists them; see `stack_samples` for `copy`."""
    dataset = checked(dataset)
    count = len(cast(Sized, dataset))
    if not count:
        raise DataError("dataset must hold at least one image, but got none")
    parts = split_batches(count, batch_size) if parts is None else parts
    return loader(dataset, partial(stack_samples, copy=copy), workers, batch_sampler=parts)


def checked(dataset: Any, name: str = "dataset") -> Dataset[Any]:
    """Return a data set whose samples are checked, see `CheckedSamples`."""
    whole = dataset
    while isinstance(whole, Subset):
        whole = whole.dataset
    return dataset if isinstance(whole, CheckedSamples) else CheckedSamples(dataset, name)


def loaded(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """Yield the batches of a loader, whatever the caller's default device is."""
    with own_device():
        batches = iter(loader)
    while True:
        with own_device():  # not while the caller has the batch
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _batches(count: int, batch_size: int) -> list[range]:
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def check_device(device: str | torch.device) -> torch.device:
    """Return the device; `auto` is CUDA if available, otherwise the CPU. Raise DeviceError if it is unavailable."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count = torch.cuda.device_count()
    try:
        chosen = torch.device(device)
        if chosen.type == "cuda" and (chosen.index or 0) >= count:
            raise AssertionError(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # of the name, or of a build without this kind of device
        there = ["cpu", *(f"cuda:{k}" for k in range(count)), *(["mps"] if torch.backends.mps.is_available() else [])]
        raise DeviceError(f"device must be available, but got {device}; use auto or {' or '.join(there)}") from error
    return chosen
