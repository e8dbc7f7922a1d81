"""Coresets of data that arrive in parts and need not fit into memory."""

import numbers
import warnings
from typing import NamedTuple, cast

import torch
from torch import Tensor

from semflow._validation import checked, positive
from semflow.errors import ConfigError, ShapeError

from .coreset import check_count, covered

ROWS = 2**14  # vectors that are moved at once


class StreamedCoreset(NamedTuple):
    """Result of `CoresetAccumulator`.

    Attributes:
        vectors: Selected vectors (count, C) in the order of selection.
        ids: Their ids, (count,).
        rows: Their positions in the stream, (count,).
        values: What was given with them, (count, D), or (count, 0).
        radius: Upper bound of the covering radius: no vector of the stream is farther from the nearest selected one.

    Example:
        >>> StreamedCoreset(torch.zeros(1, 2), torch.tensor([7]), torch.tensor([0]), torch.zeros(1, 0), 1.5).radius
        1.5
    """

    vectors: Tensor
    ids: Tensor
    rows: Tensor
    values: Tensor
    radius: float


class CoresetAccumulator:
    """Greedy k-center selection over a stream of vectors in bounded memory.

    Vectors are kept until they exceed `limit_bytes`. They are then replaced by a coreset of twice the number needed,
    and each kept vector remembers how far the vectors that it replaces are at most (coresets can be merged: Har-Peled
    and Mazumdar, 2004). If nothing was replaced, the result is that of `k_center` on all vectors.

    Args:
        count: Number of vectors to select, or their share of all vectors.
        limit_bytes: Bytes of the kept vectors. A reduction temporarily needs up to as much in addition. If a share of a
            long stream does not fit, fewer vectors are selected.
        projection: Channels of a random projection in which distances and the radius are measured; see `k_center`.
        seed: Seed of the first selected vector and of the projection.
        device: Where vectors are selected, such as a GPU while they are kept on the CPU; if they do not fit there, or
            with None, it happens where they are.

    Attributes:
        seen: Number of vectors so far.

    Example:
        >>> accumulator = CoresetAccumulator(2)
        >>> accumulator.update(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 0]))
        >>> accumulator.update(torch.tensor([[5.0], [9.0]]), torch.tensor([1, 1]))
        >>> found = accumulator.result()
        >>> sorted(found.vectors.flatten().tolist()), found.radius
        ([0.0, 9.0], 4.0)
    """

    @checked
    def __init__(
        self,
        count: int | float,
        *,
        limit_bytes: int = 2**30,
        projection: int | None = None,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        positive(count=count, limit_bytes=limit_bytes)
        self._share = not isinstance(count, numbers.Integral)
        if self._share and count > 1:
            raise ConfigError(f"count must be a share above 0 and up to 1, or a whole number, but got {count}")
        self.count, self.limit_bytes, self.projection, self.seed = count, limit_bytes, projection, seed
        self.device = device
        self.seen = 0
        self._buffers: _Part | None = None  # with room for more
        self._count = 0

    def update(self, x: Tensor, ids: Tensor, values: Tensor | None = None) -> None:
        """Add vectors (n, C), their ids, integers (n,) such as the index of the image, and values (n, D) to keep."""
        channels = "C" if self._buffers is None else self._buffers.vectors.shape[1]
        if x.dim() != 2 or not x.is_floating_point() or channels not in ("C", x.shape[1]):
            raise ShapeError(f"x must be floats of shape (n, {channels}), but got {x.dtype} {tuple(x.shape)}")
        if ids.shape != x.shape[:1]:
            raise ShapeError(f"ids must be {tuple(x.shape[:1])}, but got {tuple(ids.shape)}")
        rows = torch.arange(self.seen, self.seen + len(x), device=x.device)
        self.seen += len(x)
        slack = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        values = x.new_zeros(len(x), 0) if values is None else values.detach()
        self._append(_Part(x.detach(), ids.to(x.device), rows, values, slack))

    def merge(self, other: "CoresetAccumulator", first_id: int = 0) -> None:
        """Add what `other` has seen after what this one has, as from the next process, with `first_id` more per id."""
        before, self.seen = self.seen, self.seen + other.seen
        if other._buffers is not None:
            part = other._kept
            self._append(part._replace(rows=part.rows + before, ids=part.ids + first_id))

    def relabel(self, ids: Tensor) -> None:
        """Replace each id so far, which must be a position in `ids`, by the id there."""
        if self._buffers is not None:
            own = self._kept.ids
            own.copy_(ids.to(own)[own])

    def result(self) -> StreamedCoreset:
        """Select the coreset of everything seen so far; more can be added afterwards."""
        if not self.seen:
            raise ShapeError("x must be added with update before result, but got no vectors")
        kept, wanted = self._kept, self._wanted()
        if self._share and wanted > len(kept.vectors):
            warnings.warn(
                f"limit_bytes must hold {wanted} vectors, the share {self.count:g} of all, but got {self.limit_bytes}; "
                f"at most {len(kept.vectors)} are selected",
                stacklevel=2,
            )
        centers, distances, _ = self._cover(kept, min(wanted, len(kept.vectors)))
        radius = float((kept.slack + distances).max())
        vectors, ids, rows, values, _ = (x[centers] for x in kept)
        return StreamedCoreset(vectors, ids, rows, values, radius)

    @property
    def _kept(self) -> "_Part":
        return _Part(*(values[: self._count] for values in cast(_Part, self._buffers)))

    def _wanted(self) -> int:
        return max(1, int(self.seen * self.count)) if self._share else int(self.count)

    def _cover(self, kept: "_Part", count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return centers, and distance and owner of each vector, see `Cover`."""
        count, x = check_count(kept.vectors, count), kept.vectors
        start = torch.randint(len(x), (1,), generator=torch.Generator().manual_seed(self.seed))
        try:
            cover = covered(x.to(self.device or x.device), count, start, self.projection, self.seed)
        except torch.OutOfMemoryError:  # of a GPU
            cover = covered(x, count, start, self.projection, self.seed)
        return cover.centers.to(x.device), cover.distances.to(x.device), cover.owners.to(x.device)

    def _append(self, part: "_Part") -> None:
        width = part.vectors.shape[1] + part.values.shape[1]
        capacity = self.limit_bytes // (width * part.vectors.element_size())
        if capacity < 4 or (not self._share and capacity < 2 * self.count):
            raise ConfigError(f"limit_bytes must hold twice the count of vectors, but got {self.limit_bytes}")
        while len(part.vectors):
            if self._count >= capacity:
                self._reduce(capacity)
            start, end = self._count, min(capacity, self._count + len(part.vectors))
            self._grow(part, end, capacity)
            self._count = end
            for kept, values in zip(self._kept, part, strict=True):
                kept[start:] = values[: end - start]
            part = _Part(*(values[end - start :] for values in part))

    def _grow(self, like: "_Part", needed: int, capacity: int) -> None:
        """Make room for vectors: for twice as many, since no copy of all of them should be necessary later."""
        size = 0 if self._buffers is None else len(self._buffers.vectors)
        if needed <= size:
            return
        grown = _Part(*(x.new_empty(min(capacity, max(needed, 2 * size)), *x.shape[1:]) for x in like))
        if self._buffers is not None:
            for new, old in zip(grown, self._kept, strict=True):
                new[: self._count] = old
        self._buffers = grown

    def _reduce(self, capacity: int) -> None:
        kept = self._kept
        centers, distances, owners = self._cover(kept, min(2 * self._wanted(), capacity * 3 // 4))
        # The vectors that a center replaces are as far from it as they and their own replaced ones are at most.
        slack = torch.zeros_like(kept.slack).scatter_reduce_(0, owners, kept.slack + distances, "amax")
        kept.slack.copy_(slack)
        order = centers.sort().values
        for values in kept:
            for first in range(0, len(order), ROWS):  # in place: a row moves to one that was read before
                part = order[first : first + ROWS]
                values[first : first + len(part)] = values[part]
        self._count = len(order)


class _Part(NamedTuple):
    """Vectors (n, C), ids (n,), positions in the stream (n,), values, and the largest distance of replaced vectors."""

    vectors: Tensor
    ids: Tensor
    rows: Tensor
    values: Tensor
    slack: Tensor
