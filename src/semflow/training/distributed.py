"""Collectives of several processes that train one detector.

Each process holds a part of every batch, or every n-th batch. Means in the loss, statistics of batch norms and
gradients are computed from sums over all processes. At the same weights, any number of processes computes the loss and
the gradient of one, up to rounding. Training can make rounding errors grow, so trained weights may differ by more.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, zip_longest
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

from semflow.errors import ProcessError, SemflowError
from semflow.objectives import largest_over_locations

T = TypeVar("T")


class Processes:
    """Processes that work together; this one is number `rank` of `count`.

    Args:
        group: initialized group of `torch.distributed`; None is a single process.
        store: store in which processes agree on who reports an error.

    Example:
        >>> Processes().part([3, 4, 5])
        [3, 4, 5]
    """

    def __init__(self, group: "dist.ProcessGroup | None" = None, store: Any = None) -> None:
        self.group, self.store = group, store
        self.idle = False
        self.rank, self.count = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))

    def __deepcopy__(self, memo: object) -> "Processes":
        """Return the same processes, for copies of a detector that share its tensors."""
        return self

    def span(self, total: int) -> tuple[int, int]:
        """Return begin and end of this process's part of `total` items; parts differ by one item at most."""
        return total * self.rank // self.count, total * (self.rank + 1) // self.count

    def part(self, items: Sequence[T]) -> list[T]:
        """Return this process's contiguous part of a sequence, which may be empty."""
        start, stop = self.span(len(items))
        return list(items[start:stop])

    def deal(self, items: Sequence[T]) -> list[T]:
        """Return every n-th item, starting at this process's rank."""
        return list(items[self.rank :: self.count])

    def gather(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the results of all processes in the order of the items before `deal`."""
        if self.count == 1:
            yield from items
            return
        missing = object()
        for dealt in zip_longest(*self.gather_all(list(items)), fillvalue=missing):
            yield from (cast(T, item) for item in dealt if item is not missing)

    def stream(self, items: Iterable[T]) -> Iterator[T]:
        """Yield what `gather` does, holding one item of each process at a time; `items` must not use collectives."""
        if self.count == 1:
            yield from items
            return
        iterator = iter(items)
        while any(found := self.gather_all(list(islice(iterator, 1)))):
            yield from (item for part in found for item in part)

    def gather_all(self, value: T) -> list[T]:
        """Return the values of all processes by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with _peers():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def first(self, make: Callable[[], T]) -> T:
        """Call a function in process 0 and return its result in all; if it raises, others raise ProcessError."""
        if self.count == 1:
            return make()
        made: list[Any] = [None, None]
        failure: Exception | None = None
        if self.rank == 0:
            try:
                made[0] = make()
            except Exception as error:
                failure, made[1] = error, " ".join(str(error).split()) or type(error).__name__
        with _peers():
            dist.broadcast_object_list(made, src=self._process(0), group=self.group)
        if failure is not None:
            raise failure
        if made[1] is not None:
            raise ProcessError(f"process 0 of {self.count} must succeed, but got an error: {made[1]}")
        return cast(T, made[0])

    def reports(self, message: str, of_another: bool = False) -> bool:
        """Return True if this process is the first to ask, and so should print an error that others may have too.

        `of_another` is True if the message only says that another process failed, which that one may have reported.
        """
        if self.store is None:
            return True
        try:
            if of_another and self.store.add("reported", 0):
                return False
            self.store.add("reported", 1)
            return bool(self.store.add(f"reported {message}", 1) == 1)
        except RuntimeError:  # the process that holds the store has ended
            return True

    @torch.no_grad()
    def spread(self, tensors: Iterable[Tensor], source: int = 0) -> None:
        """Overwrite tensors with those of one process."""
        if self.count > 1:
            for x in tensors:
                with _peers():
                    whole = x.contiguous()
                    dist.broadcast(whole, src=self._process(source), group=self.group)
                    if whole is not x:
                        x.copy_(whole)

    def total(self, x: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes, without a gradient."""
        x = x.detach().clone(memory_format=torch.contiguous_format)
        with _peers():
            dist.all_reduce(x, group=self.group)
        return x

    def sum(self, x: Tensor) -> Tensor:
        """Return the differentiable sum of a tensor; its gradient is the sum of the gradients of all processes."""
        return x if self.count == 1 else cast(Tensor, _Sum.apply(x, self))  # type: ignore[no-untyped-call]

    def means(self, maps: Sequence[Tensor], ignore: Tensor | None = None) -> list[Tensor]:
        """Compute `semflow.objectives.means_over_locations` over all processes; every location has the same weight."""
        summed = self.sum(torch.stack([y for x in maps for y in sum_and_count(x, ignore, self.idle)]))
        return [summed[2 * k] / summed[2 * k + 1].clamp(min=1) for k in range(len(maps))]

    def largest(self, x: Tensor, ignore: Tensor | None = None) -> Tensor:
        """Compute `semflow.objectives.largest_over_locations` over all processes."""
        own = largest_over_locations(x, ignore)
        own = torch.full_like(own, -torch.inf) if self.idle else own
        with _peers():
            dist.all_reduce(own, dist.ReduceOp.MAX, group=self.group)
        return own

    @contextmanager
    def idling(self, idle: bool) -> Iterator[None]:
        """Give the computation of the block weight 0 if this process has no part of a batch."""
        before, self.idle = self.idle, idle
        try:
            yield
        finally:
            self.idle = before

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their sums over the processes, in one message."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        summed = self.total(torch.cat([g.flatten() for g in gradients])).split([g.numel() for g in gradients])
        for gradient, value in zip(gradients, summed, strict=True):
            gradient.copy_(value.view_as(gradient))

    def _process(self, rank: int) -> int:
        """Return the global rank of a rank in the group."""
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


ALONE = Processes()
"""A single process."""


def sum_and_count(x: Tensor, ignore: Tensor | None, idle: bool) -> tuple[Tensor, Tensor]:
    """Return sum and count over the locations that are not ignored."""
    counted = torch.ones_like(x) if ignore is None or x.dim() != 3 else (~(ignore > 0)).to(x)
    counted = torch.zeros_like(x) if idle else counted
    return torch.where(counted > 0, x, 0.0).sum(), counted.sum()


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes  # type: ignore[attr-defined]
        return processes.total(x)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.processes.total(gradient), None  # type: ignore[attr-defined]


@contextmanager
def _peers() -> Iterator[None]:
    """Turn the failure of a collective into a ProcessError."""
    try:
        yield
    except SemflowError:
        raise
    except RuntimeError as error:
        raise ProcessError("all processes of a run must stay alive, but got a failure of another one") from error
