"""Commands that torchrun may have started several times, to work together."""

__all__ = ["together"]

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from semflow.errors import ProcessError, SemflowError
from semflow.training import Processes, launched_processes

from .options import Device


@contextmanager
def together(device: Device) -> Iterator[tuple[Processes, torch.device]]:
    """The processes that were launched, and this one's device; a mistake that all of them find is said by one."""
    with launched_processes(device) as (processes, own):
        try:
            yield processes, own
        except (SemflowError, OSError) as error:
            if not processes.reports(str(error), isinstance(error, ProcessError)):
                raise SystemExit(2) from None  # another process has said it
            raise
