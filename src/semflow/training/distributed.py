"""Several processes that train one detector: the few collectives that it takes.

Each process holds a part of every batch, or every n-th batch. What one process computes from a batch - means in the
loss, statistics of a batch norm, gradients - is computed from sums over all of them, so that any number of processes
takes the steps that one takes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

from semflow.errors import ProcessError, SemflowError

__all__ = ["ALONE", "Processes"]

T = TypeVar("T")


class Processes:
    """The processes that work together, of which this one is number `rank` of `count`.

    Args:
        group: of `torch.distributed`, initialised; None is a process alone, for which every method is the trivial one.
        store: through which processes agree on who says what, outside the collectives.

    Example:
        >>> alone = Processes()
        >>> alone.rank, alone.count, alone.part([3, 4, 5]), alone.first(lambda: "made once")
        (0, 1, [3, 4, 5], 'made once')
    """

    def __init__(self, group: "dist.ProcessGroup | None" = None, store: Any = None) -> None:
        self.group, self.store = group, store
        self.idle = False
        self.rank, self.count = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))

    def span(self, total: int) -> tuple[int, int]:
        """Where this process's part of `total` things begins and ends; the parts differ by one at most.

        >>> processes = Processes()
        >>> processes.rank, processes.count = 1, 3
        >>> processes.span(10)
        (3, 6)
        """
        return total * self.rank // self.count, total * (self.rank + 1) // self.count

    def part(self, items: Sequence[T]) -> list[T]:
        """This process's part of a sequence: one piece of it, which may be empty."""
        start, stop = self.span(len(items))
        return list(items[start:stop])

    def deal(self, items: Sequence[T]) -> list[T]:
        """Every n-th item, from this process's on."""
        return list(items[self.rank :: self.count])

    def gather(self, items: Iterable[T]) -> Iterator[T]:
        """What each process has made of its items, in the order of the items before they were dealt.

        Alone it passes them on one by one.
        """
        if self.count == 1:
            yield from items
            return
        nothing = object()
        for dealt in zip_longest(*self.gather_all(list(items)), fillvalue=nothing):
            yield from (cast(T, item) for item in dealt if item is not nothing)

    def gather_all(self, value: T) -> list[T]:
        """The value of each process, by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with _peers():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def first(self, make: Callable[[], T]) -> T:
        """What process 0 makes, for all.

        Raises:
            SemflowError, OSError: process 0 could not make it; the others raise ProcessError.
        """
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
            raise ProcessError(f"process 0 of {self.count} has stopped: {made[1]}")
        return cast(T, made[0])

    def says(self, message: str, of_another: bool = False) -> bool:
        """Whether this process is the one to say a message that others may have too: the first that asks.

        Args:
            message: one that ends the run.
            of_another: it says that another process has failed: not needed if that one has said anything.
        """
        if self.store is None:
            return True
        try:
            if of_another and self.store.add("said", 0):
                return False
            self.store.add("said", 1)
            return bool(self.store.add(f"said {message}", 1) == 1)
        except RuntimeError:  # who kept the store is gone
            return True

    @torch.no_grad()
    def spread(self, tensors: Iterable[Tensor], source: int = 0) -> None:
        """Overwrite tensors by those of one process."""
        if self.count > 1:
            for x in tensors:
                with _peers():
                    whole = x.contiguous()
                    dist.broadcast(whole, src=self._process(source), group=self.group)
                    if whole is not x:
                        x.copy_(whole)

    def total(self, x: Tensor) -> Tensor:
        """The sum of a tensor over the processes; a new tensor, without a gradient."""
        x = x.detach().clone(memory_format=torch.contiguous_format)
        with _peers():
            dist.all_reduce(x, group=self.group)
        return x

    def sum(self, x: Tensor) -> Tensor:
        """The sum of a tensor over the processes, which knows its gradient.

        The gradient is that of the sum of what all processes make of it. Of a loss that all have in common, each
        differentiates its share, loss / count.
        """
        return x if self.count == 1 else cast(Tensor, _Sum.apply(x, self))  # type: ignore[no-untyped-call]

    def means(self, maps: Sequence[Tensor], ignore: Tensor | None = None) -> list[Tensor]:
        """`semflow.objectives.means_over_locations` over all processes: each location counts alike, wherever it is."""
        summed = self.sum(torch.stack([y for x in maps for y in _sum_and_count(x, ignore, self.idle)]))
        return [summed[2 * k] / summed[2 * k + 1].clamp(min=1) for k in range(len(maps))]

    @contextmanager
    def idling(self, idle: bool) -> Iterator[None]:
        """Let what is computed count for nothing, where no part of a batch is this process's and steps go on."""
        before, self.idle = self.idle, idle
        try:
            yield
        finally:
            self.idle = before

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Give all processes the sums of their gradients, in one message."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        summed = self.total(torch.cat([g.flatten() for g in gradients])).split([g.numel() for g in gradients])
        for gradient, value in zip(gradients, summed, strict=True):
            gradient.copy_(value.view_as(gradient))

    def _process(self, rank: int) -> int:
        """The rank among all processes, where the group is not all of them."""
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


ALONE = Processes()
"""One process."""


def _sum_and_count(x: Tensor, ignore: Tensor | None, idle: bool) -> tuple[Tensor, Tensor]:
    """Of the locations that count; of anything but a map of locations, of all numbers."""
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
    """A collective that fails says that another process is gone."""
    try:
        yield
    except SemflowError:
        raise
    except RuntimeError as error:
        raise ProcessError("another process of this run has stopped, its own message says why") from error
