"""Batches out of a data set, for every pass that a detector makes over one."""

from collections.abc import Sized
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from ..data import Batch, collate
from ..errors import DataError, DeviceError

__all__ = ["batches", "check_device"]


def batches(dataset: Dataset[Any], batch_size: int, workers: int = 0) -> DataLoader[Batch]:
    """Batches in the order of the data set.

    Raises:
        DataError: the data set is empty.
    """
    if not len(cast(Sized, dataset)):
        raise DataError("dataset must hold at least one image, but is empty")
    return DataLoader(dataset, batch_size, shuffle=False, num_workers=workers, collate_fn=collate)


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
