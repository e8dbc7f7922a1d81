"""Greedy k-center selection: a few vectors such that no vector is far from the nearest of them."""

import math
import numbers
from typing import NamedTuple

import torch
from torch import Tensor

from semflow._validation import checked
from semflow.errors import ConfigError, ShapeError

from .neighbors import rounding, without_autocast

BATCH = 1024  # farthest vectors among which centers are selected before all distances are updated
PIECE = 2**21  # elements of a matrix product that stay in the cache of a CPU
GPU_PIECE = 2**25  # elements of one that keeps a GPU busy between two launches
VARIANCE = 0.95  # share of the variance in the coordinates that lower bounds use


class Coreset(NamedTuple):
    """Result of `k_center`.

    Attributes:
        indices: Rows of the selected vectors in the order of selection, int64 of shape (count,).
        radius: Covering radius: the largest distance of a vector to the nearest selected vector, after projection.

    Example:
        >>> Coreset(torch.tensor([0]), 1.5).radius
        1.5
    """

    indices: Tensor
    radius: float


@checked
def k_center(
    x: Tensor,
    count: int | float,
    *,
    start: int | None = None,
    chosen: Tensor | None = None,
    projection: int | None = None,
    seed: int = 0,
) -> Coreset:
    """Select `count` vectors greedily, each the farthest from those before (Gonzalez, 1985; PatchCore, section 3.2).

    The radius is at most twice the smallest possible one. Indices equal those of the direct method (update the
    distances of all vectors after each selection, take the first maximum), as in anomalib's `KCenterGreedy` for the
    same start and projection, bit for bit: distances are norms of differences in float32 (float64 for float64). Most of
    them are not computed: centers are selected among the farthest vectors for as long as no other vector can be
    farther, and lower bounds from a matrix product of the leading principal components leave out the pairs that cannot
    change a distance.

    Args:
        x: Finite vectors of shape (N, C).
        count: Number of vectors, or their share of N as a float, rounded down. Fewer are selected if all others are
            duplicates of selected ones.
        start: First index; by default drawn with `seed`.
        chosen: Indices that have been selected already and come first in the result: a selection that was stopped can
            be continued.
        projection: Channels of a `sparse_projection` with `seed`, in which distances are measured; by default x itself.
        seed: Seed of the start and of the projection.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [4.0], [10.0]])
        >>> k_center(x, 3, start=0)
        Coreset(indices=tensor([0, 3, 2]), radius=1.0)
        >>> k_center(x, 3, chosen=torch.tensor([0, 3])).indices
        tensor([0, 3, 2])
    """
    number = check_count(x, count)
    if start is not None and not 0 <= start < len(x):
        raise ConfigError(f"start must be between 0 and {len(x) - 1}, but got {start}")
    if chosen is None:
        draw = torch.randint(len(x), (), generator=torch.Generator().manual_seed(seed))
        chosen = (draw if start is None else torch.tensor(start))[None]
    elif start is not None:
        raise ConfigError(f"start must be None with chosen, whose first index it is, but got {start}")
    elif chosen.dim() != 1 or not 1 <= len(chosen) <= number or chosen.is_floating_point():
        raise ShapeError(f"chosen must be 1 to {number} integers, but got {chosen.dtype} {tuple(chosen.shape)}")
    elif not 0 <= int(chosen.min()) <= int(chosen.max()) < len(x):
        raise ShapeError(
            f"chosen must be between 0 and {len(x) - 1}, but got {int(chosen.min())} to {int(chosen.max())}"
        )
    cover = covered(x, number, chosen, projection, seed)
    return Coreset(cover.centers, cover.radius)


def projected(x: Tensor, size: int | None, seed: int) -> Tensor:
    """Multiply x (N, C) by `sparse_projection`; None returns x.

    Example:
        >>> projected(torch.zeros(5, 3), 2, seed=0).shape
        torch.Size([5, 2])
    """
    if size is None:
        return x
    dtype = torch.promote_types(x.dtype, torch.float32)
    matrix = sparse_projection(x.shape[1], size, seed=seed).to(x.device, dtype)
    found, rows = x.new_empty(len(x), size, dtype=dtype), _rows(x, x.shape[1])
    for first in range(0, len(x), rows):
        found[first : first + rows] = x[first : first + rows].to(dtype) @ matrix
    return found


def _rows(x: Tensor, width: int) -> int:
    """Return how many rows of a width are computed at a time."""
    return max(1, (PIECE if x.device.type == "cpu" else GPU_PIECE) // width)


@checked
def sparse_projection(channels: int, size: int, *, seed: int = 0) -> Tensor:
    """Draw a random projection (channels, size) that approximately keeps distances (Li et al., 2006).

    Entries are 0 with probability 1 - 1 / sqrt(channels), otherwise +- channels^(1/4) / sqrt(size).

    Example:
        >>> sparse_projection(1600, 100).count_nonzero() / 160_000 < 0.03
        tensor(True)
    """
    if min(channels, size) < 1:
        raise ConfigError(f"channels and size must be positive, but got {channels} and {size}")
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(channels, size, generator=generator) < channels**-0.5
    signs = torch.randint(2, (channels, size), generator=generator) * 2 - 1
    entry: float = channels**0.25 / math.sqrt(size)
    found: Tensor = kept * signs * entry
    return found


def check_count(x: Tensor, count: int | float) -> int:
    """Return `count` as a number of rows of `x`, (N, C) with positive N and C; raise errors for invalid values.

    Example:
        >>> check_count(torch.zeros(50, 3), 0.1)
        5
    """
    if x.dim() != 2 or not x.numel() or not x.is_floating_point():
        raise ShapeError(f"x must be floats of shape (N, C), but got {x.dtype} {tuple(x.shape)}")
    if not isinstance(count, numbers.Integral):
        if not 0 < count <= 1:
            raise ConfigError(f"count must be a share above 0 and up to 1, or a whole number, but got {count}")
        return max(1, int(len(x) * count))
    if not 1 <= count <= len(x):
        raise ConfigError(f"count must be between 1 and the {len(x)} vectors, but got {count}")
    return int(count)


@torch.no_grad()
def covered(x: Tensor, count: int, chosen: Tensor, projection: int | None, seed: int) -> "Cover":
    """Return the cover of (projected) x by `count` centers, which begin with the indices `chosen`.

    Example:
        >>> covered(torch.tensor([[0.0], [1.0], [4.0]]), 2, torch.tensor([1]), projection=None, seed=0).centers
        tensor([1, 2])
    """
    with without_autocast(x):
        cover = Cover(projected(x, projection, seed), count)
        cover.add(chosen.to(x.device, torch.int64))
        cover.extend(count)
        return cover


class Cover:
    """Vectors (N, C), the centers among them, and for each vector its nearest center and the distance to it.

    Args:
        x: Finite vectors of shape (N, C).
        expected: Approximate number of centers to come: lower bounds pay off for many.

    Attributes:
        centers: Indices of the centers in order.
        distances: Distance of each vector to the nearest center, (N,).
        owners: Index of that center, (N,); the vector itself before the first center.

    Example:
        >>> cover = Cover(torch.tensor([[0.0], [1.0], [4.0]]), expected=2)
        >>> cover.add(torch.tensor([0]))
        >>> cover.extend(2)
        >>> cover.centers, cover.distances, cover.owners
        (tensor([0, 2]), tensor([0., 1., 0.]), tensor([0, 0, 2]))
    """

    def __init__(self, x: Tensor, expected: int) -> None:
        self._x = x
        self._dtype = torch.promote_types(x.dtype, torch.float32)
        self._error = 6 * rounding(x.shape[1], self._dtype)
        self._codes, self._norms = self._encoded(expected)
        if not self._norms.isfinite().all():
            raise ShapeError("x must have finite squared norms, but got NaN, infinity or an overflow")
        self.centers = torch.zeros(0, dtype=torch.int64, device=x.device)
        self.distances = torch.full_like(self._norms, torch.inf)
        self.owners = torch.arange(len(x), device=x.device)

    @property
    def radius(self) -> float:
        """Largest distance of a vector to the nearest center."""
        return float(self.distances.max())

    def _encoded(self, expected: int) -> tuple[Tensor, Tensor]:
        """Return codes (N, q + 1), whose distances are lower bounds of those of x, and their squared norms.

        Codes are leading principal components and the norm of the others, because by the triangle inequality the norm
        of a difference is at least the difference of the norms.
        """
        mean, channels = self._x.mean(0, dtype=self._dtype), self._x.shape[1]
        basis = None
        if expected > channels:  # otherwise the components cost more than they save
            sample = self._x[:: max(1, len(self._x) // max(8192, 2 * channels))].to(self._dtype) - mean
            values, vectors = torch.linalg.eigh((sample.T @ sample).nan_to_num_(0, 0, 0).double())
            values = values.flip(0).clamp(min=0)
            kept = int((values.cumsum(0) < VARIANCE * values.sum()).sum()) + 1
            if kept < 0.8 * channels:
                basis = vectors.flip(1)[:, :kept].to(self._dtype)
        width, rows = channels if basis is None else basis.shape[1] + 1, _rows(self._x, channels)
        codes, norms = mean.new_empty(len(self._x), width), mean.new_empty(len(self._x))
        for first in range(0, len(self._x), rows):
            here = slice(first, first + rows)
            code = self._x[here].to(self._dtype) - mean
            norms[here] = code.square().sum(1)
            if basis is not None:
                code = code @ basis
                others = (norms[here] - code.square().sum(1)).clamp(min=0).sqrt()
                code = torch.cat([code, others[:, None]], 1)
            codes[here] = code
        return codes, norms

    def add(self, centers: Tensor) -> None:
        """Append centers (int64 indices) and update all distances."""
        self.centers = torch.cat([self.centers, centers])
        for some in centers.split(BATCH):
            codes, norms = self._codes.index_select(0, some), self._norms[some]
            factor = torch.cat([-2 * codes, norms[:, None]], 1).T.contiguous()
            rows, largest = _rows(self._x, max(len(some), self._x.shape[1])), float(norms.max())
            for first in range(0, len(self._x), rows):
                self._update(first, rows, some, factor, largest)

    def _update(self, first: int, rows: int, centers: Tensor, factor: Tensor, largest: float) -> None:
        codes, norms = self._codes[first : first + rows], self._norms[first : first + rows]
        distances = self.distances[first : first + rows]
        bounds = torch.addmm(factor[-1], codes, factor[:-1])  # of the squared distances, less the norms
        spare = self._error * (norms + largest) - norms
        points = (bounds.amin(1) < distances.square() + spare).nonzero()[:, 0]
        if not len(points):
            return
        # The center with the lowest bound first: its distance rules out most of the others.
        bounds = bounds.index_select(0, points)
        best = bounds.argmin(1)
        self._shorten(points + first, centers[best])
        bounds.scatter_(1, best[:, None], torch.inf)
        pairs = (bounds < (distances[points].square() + spare[points])[:, None]).nonzero()
        for pair in pairs.split(_rows(codes, codes.shape[1])):
            self._shorten(points[pair[:, 0]] + first, centers[pair[:, 1]])

    def _shorten(self, points: Tensor, centers: Tensor) -> None:
        """Update the distances of points (may repeat) to the centers beside them."""
        exact = self._between(points, centers)
        shorter = exact < self.distances[points]
        points, centers, exact = points[shorter], centers[shorter], exact[shorter]
        self.distances.scatter_reduce_(0, points, exact, "amin")
        nearest = exact == self.distances[points]
        self.owners[points[nearest]] = centers[nearest]

    def _between(self, points: Tensor, centers: Tensor) -> Tensor:
        found: Tensor = torch.linalg.vector_norm(self._taken(points).sub_(self._taken(centers)), dim=1)
        return found

    def _taken(self, rows: Tensor) -> Tensor:
        return self._x.index_select(0, rows).to(self._dtype)  # several times faster than by an index

    def extend(self, count: int) -> None:
        """Add farthest vectors until there are `count` centers or the radius is 0."""
        while len(self.centers) < count and self.radius > 0:
            self.add(self._farthest(min(BATCH, count - len(self.centers))))

    def _farthest(self, most: int) -> Tensor:
        """Return the next centers, at most `most`, whose order the vectors outside a batch cannot change."""
        size = min(BATCH, len(self._x) - 1)
        values, batch = self.distances.topk(size + 1)
        bound = values[-1]
        if values[0] == bound:  # more vectors at the largest distance than fit into the batch
            return self.distances.argmax()[None]
        batch = batch[:-1].sort().values  # so that argmax takes the first of equal ones
        x, distances = self._taken(batch), self.distances[batch]
        centered = x - x.mean(0)
        norms = centered.square().sum(1)
        bounds = torch.addmm(norms[:, None] + norms, centered, centered.T, alpha=-2)
        bounds -= self._error * (norms + norms.max())
        picks = [distances.argmax()]
        while len(picks) < most:
            near = (bounds[picks[-1]] < distances.square()).nonzero()[:, 0]
            exact = torch.linalg.vector_norm(x.index_select(0, near) - x[picks[-1]], dim=1)
            distances[near] = torch.minimum(distances[near], exact)
            value, pick = distances.max(0)
            if not value > bound:
                break
            picks.append(pick)
        return batch[torch.stack(picks)]
