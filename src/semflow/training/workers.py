"""Processes that load batches. Whatever fails in one of them reaches this process, and no wait is without an end.

torch sends tensors through shared memory, of which containers have little. If it is full, the batch is lost in a thread
of the worker, and the other side waits forever. Here a batch is pickled where errors are caught, then piped.
"""

import io
import pickle
import time
import traceback
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from semflow.errors import ProcessError

PATIENCE = 300.0
"""Seconds to wait for a batch, the first one included, while the workers are alive."""
EVERY = 5.0
FEWER = "use fewer workers, or 0"


def loader(
    dataset: Dataset[Any], collate: Callable[[list[Any]], Any], workers: int = 0, **options: Any
) -> DataLoader[Any]:
    """Return a loader of batches made by `collate`; `options` are torch's. Without workers it is torch's own.

    Raises:
        ProcessError: In the loop over the batches, if a worker cannot start, ends, or sends no batch for `PATIENCE`.
    """
    if workers == 0:
        return DataLoader(dataset, collate_fn=collate, **options)
    every = min(EVERY, PATIENCE)
    return _Loader(_Work(dataset, collate), num_workers=workers, collate_fn=_unchanged, timeout=every, **options)


class _Loader(DataLoader[Any]):
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: Iterator[Any]
        try:
            _try_semaphores(self.num_workers)
            batches = iter(super().__iter__())  # starts the workers
        except (OSError, RuntimeError, AttributeError, TypeError, pickle.PicklingError) as error:
            raise ProcessError(f"workers must be able to start, but got {_reason(error)}; {FEWER}") from error
        since = time.monotonic()
        try:
            while True:
                try:
                    sent = next(batches)
                except StopIteration:
                    return
                except RuntimeError as error:
                    # Without its traceback, whose frames would keep the dead workers' iterator.
                    if "timed out" not in str(error):
                        reason = _reason(error)
                    elif time.monotonic() - since < PATIENCE:
                        continue
                    else:
                        reason = f"no batch in {PATIENCE:g} s"
                    raise ProcessError(
                        f"workers must stay alive and load images, but got {reason}; {FEWER}"
                    ) from error.with_traceback(None)
                yield _opened(sent)
                since = time.monotonic()
        finally:
            del batches  # ends the workers, also if an error keeps this frame


def _try_semaphores(workers: int) -> None:
    """Create what the workers need, and drop it: torch adds the traceback of a destructor to an error."""
    context: Any = torch.multiprocessing
    _ = [context.Event(), *(context.Queue() for _ in range(workers + 1))]


class _Work(Dataset[Any]):
    """Data set in a worker: returns a batch, or the error of one, as bytes."""

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitems__(self, positions: Sequence[int]) -> bytes:
        try:
            several = getattr(self.dataset, "__getitems__", None)  # torch's optional method for a whole batch
            samples = several(positions) if callable(several) else [self.dataset[i] for i in positions]
            batch = self.collate(samples)
        except Exception as error:
            return _pickled((None, _sendable(error)))
        try:
            return _pickled((batch, None))
        except Exception as error:  # of whatever else a sample holds
            return _pickled((None, ProcessError(f"workers must be able to send images, but got {_reason(error)}")))


def _unchanged(sent: Any) -> Any:
    return sent


def _opened(sent: bytes) -> Any:
    batch, error = pickle.loads(sent)
    if error is not None:
        raise error
    return batch


class _Pickler(pickle.Pickler):
    def reducer_override(self, x: object) -> Any:
        """Reduce tensors to arrays, which are copied once."""
        if type(x) is Tensor and x.device.type == "cpu" and not x.requires_grad and x.dtype != torch.bfloat16:
            return torch.from_numpy, (x.numpy(),)
        return NotImplemented


def _pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(value)
    return buffer.getvalue()


def _sendable(error: Exception) -> Exception:
    """Return an error that can be sent: the same one if possible, with the worker's traceback as a note."""
    error.add_note("in a worker:\n" + "".join(traceback.format_exception(error)))
    try:
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
    except Exception:  # whatever the class of the error does
        return ProcessError(f"workers must be able to load images, but got {_reason(error)}")
    return ProcessError(f"workers must be able to load images, but got {_reason(error)}")


def _reason(error: BaseException) -> str:
    kind = "" if isinstance(error, OSError | RuntimeError) else f"{type(error).__name__}: "
    text = getattr(error, "strerror", None) or str(error)
    return f"{kind}{' '.join(text.split()) or type(error).__name__}"[:300]
