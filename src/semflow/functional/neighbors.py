"""Nearest neighbors in Euclidean distance by exact search with bounded memory."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from semflow._devices import is_traced
from semflow.errors import ConfigError, ShapeError

SPARE = 8  # candidates beyond k, whose distances are computed exactly
FEW = 1  # of them suffice for most queries; the others are searched again
BLOCK = 16  # columns whose minimum is taken first when the smallest of a row are selected
MOST_QUERIES = 1024  # at a time: more do not make the matrix product faster


def nearest(
    queries: Tensor,
    memory: Tensor,
    k: int = 1,
    *,
    exclude: Tensor | None = None,
    memory_ids: Tensor | None = None,
    chunk_bytes: int = 2**26,
) -> tuple[Tensor, Tensor]:
    """Return the k smallest Euclidean distances (n, k) in ascending order and the rows of the memory (n, k).

    A matrix product, |m|^2 - 2 q m around the mean of the memory, selects candidates, and their distances are computed
    from differences, so that rounding does not grow as distances approach 0. Queries for which rounding could have
    hidden a neighbor are searched again with more candidates and then in float64; an exported graph leaves this out.
    Of rows at equal distances, any may be returned, in ascending order. The distances for a query do not depend on the
    other queries, and gradients flow through them.

    Args:
        queries: Vectors of shape (n, C). float16 and bfloat16 are computed as float32, also under autocast.
        memory: Vectors of shape (M, C).
        k: Number of neighbors, at most M.
        exclude: Integers of shape (n,): rows of the memory with this id are ignored. Distances are infinite where
            fewer than k rows are left.
        memory_ids: Integers of shape (M,) that `exclude` refers to; row numbers by default.
        chunk_bytes: Approximate limit of temporary memory.

    Example:
        >>> distances, rows = nearest(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 3.0], [0.0, 0.0]]), k=2)
        >>> distances.tolist(), rows.tolist()
        ([[1.0, 2.0]], [[1, 0]])
    """
    _check(queries, memory, k, exclude, memory_ids)
    with without_autocast(queries):
        dtype = torch.promote_types(torch.promote_types(queries.dtype, memory.dtype), torch.float32)
        queries = queries.to(dtype)
        if exclude is not None and memory_ids is None:
            memory_ids = torch.arange(memory.shape[0], device=memory.device)
        center = memory.detach().mean(0, dtype=dtype)
        size, width = queries.element_size(), memory.shape[1]
        number = max(1, min(MOST_QUERIES, chunk_bytes // (2 * size * (k + SPARE) * width)))
        if is_traced():  # the number of queries may be dynamic
            rows = chunk_bytes // (size * (number + width))
            return _search(queries, memory, center, None, k, exclude, memory_ids, rows, SPARE, dtype)[:2]
        number = min(number, max(1, queries.shape[0]))
        rows = chunk_bytes // (size * (number + 2 * width))

        def search(
            x: Tensor, ids: Tensor | None, rows: int, more: int, within: torch.dtype = dtype
        ) -> tuple[Tensor, ...]:
            parts = x.split(number)
            split = [None] * len(parts) if ids is None else ids.split(number)
            whole = _extended(memory, center, within) if memory.shape[0] <= rows else None
            found = [
                _search(part, memory, center, whole, k, own, memory_ids, rows, more, within)
                for part, own in zip(parts, split, strict=True)
            ]
            return tuple(torch.cat(column) for column in zip(*found, strict=True))

        if dtype == torch.float64:
            distances, index, _ = search(queries, exclude, rows, SPARE)
            return distances, index
        distances, index, complete = search(queries, exclude, rows, FEW)
        for within, rows_at_once in ((dtype, rows), (torch.float64, rows // 2)):
            again = (~(distances[:, -1].square() <= complete)).nonzero()[:, 0]  # waits for a GPU
            if not len(again):
                break
            ids = None if exclude is None else exclude[again]
            better = search(queries[again], ids, rows_at_once, SPARE, within)
            pairs = zip((distances, index, complete), better, strict=True)
            distances, index, complete = (x.index_copy(0, again, y.to(x.dtype)) for x, y in pairs)
        return distances, index


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast is off on the device of `x`.

    Example:
        >>> x = torch.ones(2, 2)
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), without_autocast(x):
        ...     (x @ x).dtype
        torch.float32
    """
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def rounding(channels: int, dtype: torch.dtype) -> float:
    """Return a bound of the rounding error of |a|^2 + |b|^2 - 2 a b, relative to |a|^2 + |b|^2.

    A sum of C products is off by at most C epsilon / 2 relative to the norms, in any order of summation. The factors
    have 8 or 11 bits if `torch.set_float32_matmul_precision` or `torch.backends` allow that.

    Example:
        >>> f"{rounding(152, torch.float32):.1e}"
        '1.9e-05'
    """
    return torch.finfo(dtype).eps * (channels + 4) + (_factors() if dtype == torch.float32 else 0.0)


def _factors() -> float:
    """Return the rounding error of the factors of a product in float32."""
    try:
        chosen = [torch.get_float32_matmul_precision()]
    except RuntimeError:  # it was chosen by torch's newer settings, of which each library has its own
        chosen = [library.matmul.fp32_precision for library in (torch.backends.cuda, torch.backends.mkldnn)]
    return max({"high": 2.0**-9, "tf32": 2.0**-9, "medium": 2.0**-6, "bf16": 2.0**-6}.get(x, 0.0) for x in chosen)


def _check(queries: Tensor, memory: Tensor, k: int, exclude: Tensor | None, memory_ids: Tensor | None) -> None:
    if memory.dim() != 2 or not memory.is_floating_point():
        raise ShapeError(f"memory must be floats of shape (M, C), but got {memory.dtype} {tuple(memory.shape)}")
    if queries.dim() != 2 or queries.shape[1] != memory.shape[1] or not queries.is_floating_point():
        raise ShapeError(
            f"queries must be floats of shape (n, {memory.shape[1]}), but got {queries.dtype} {tuple(queries.shape)}"
        )
    if not 1 <= k <= memory.shape[0]:
        raise ConfigError(f"k must be between 1 and the {memory.shape[0]} rows of the memory, but got {k}")
    if exclude is not None and exclude.shape != queries.shape[:1]:
        raise ShapeError(f"exclude must be {tuple(queries.shape[:1])}, but got {tuple(exclude.shape)}")
    if memory_ids is not None and memory_ids.shape != memory.shape[:1]:
        raise ShapeError(f"memory_ids must be {tuple(memory.shape[:1])}, but got {tuple(memory_ids.shape)}")


def _search(
    queries: Tensor,
    memory: Tensor,
    center: Tensor,
    whole: Tensor | None,
    k: int,
    exclude: Tensor | None,
    memory_ids: Tensor | None,
    rows: int,
    more: int,
    within: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return distances and rows of the nearest of k + `more` candidates, and the squared distances they are right to.

    Candidates are selected in the type `within`. `whole` is the `_extended` memory if all of it is searched at once.
    """
    given = (queries.to(within), memory, center.to(within), whole, k + more, exclude, memory_ids, max(rows, k + SPARE))
    index, complete = _candidates(*given)
    return *_refined(queries, memory, k, index, exclude, memory_ids), complete


@torch.no_grad()
def _candidates(
    queries: Tensor,
    memory: Tensor,
    center: Tensor,
    whole: Tensor | None,
    count: int,
    exclude: Tensor | None,
    memory_ids: Tensor | None,
    rows: int,
) -> tuple[Tensor, Tensor]:
    """Return the rows with the smallest rounded distances, and a squared distance below that of all other rows."""
    count = min(count, memory.shape[0])
    q = queries - center
    extended = torch.cat([-2 * q, torch.ones_like(q[:, :1])], 1)  # the product adds the norms of the memory
    best, index, largest = q, q, q.new_zeros(())  # the first part replaces them
    for first in range(0, memory.shape[0], rows):
        part = _extended(memory[first : first + rows], center, q.dtype) if whole is None else whole
        scores = extended @ part.T
        if exclude is not None and memory_ids is not None:
            scores = _without(scores, memory_ids[first : first + rows], exclude)
        scores, where = _smallest(scores, min(count, part.shape[0]))
        where = where + first
        if first:
            scores, where = torch.cat([best, scores], 1), torch.cat([index, where], 1)
            scores, order = scores.topk(min(count, scores.shape[1]), dim=1, largest=False)
            where = where.gather(1, order)
        best, index, largest = scores, where, torch.maximum(largest, part[:, -1].amax())
    if count == memory.shape[0] or is_traced():  # no other rows, or no second search
        return index, torch.full_like(best[:, 0], torch.inf)
    length = q.square().sum(1)
    return index, best[:, -1] + length - rounding(q.shape[1], q.dtype) * (length + largest)


@torch.no_grad()
def _extended(memory: Tensor, center: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the rows of the memory around `center`, each with its squared norm as the last column."""
    rows = memory.to(dtype) - center.to(dtype)
    return torch.cat([rows, rows.square().sum(1, keepdim=True)], 1)


def _without(scores: Tensor, ids: Tensor, exclude: Tensor) -> Tensor:
    """Set the scores of columns with the id that a row excludes to infinity."""
    if scores.device.type == "cpu" and not is_traced() and len(own := exclude.unique()) <= BLOCK:
        for one in own:  # such as the images of a batch, which takes a tenth of the time
            columns = (ids == one).nonzero()[:, 0]
            scores[(exclude == one).nonzero(), columns] = torch.inf
        return scores
    return scores.masked_fill_(ids == exclude[:, None], torch.inf)


def _smallest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the smallest values of each row and their columns, like `topk` in half the time.

    They are in the blocks of columns with the smallest minima.
    """
    rows, width = scores.shape
    blocks = width // BLOCK
    if is_traced() or blocks < 4 * count:
        smallest = scores.topk(count, dim=1, largest=False)
        return smallest.values, smallest.indices
    minima = scores[:, : blocks * BLOCK].unflatten(1, (BLOCK, blocks)).amin(1)
    chosen = _lowest(minima, count)[1]
    steps = torch.arange(0, blocks * BLOCK, blocks, device=scores.device)
    where = (chosen[:, None] + steps[:, None]).flatten(1)
    rest = torch.arange(blocks * BLOCK, width, device=scores.device)
    where = torch.cat([where, rest.expand(rows, -1)], 1)
    values, columns = _lowest(scores.gather(1, where), count)
    return values, where.gather(1, columns)


def _lowest(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return what `topk` does, for two values in a third of the time."""
    if count != 2 or x.device.type != "cpu":
        lowest = x.topk(count, dim=1, largest=False)
        return lowest.values, lowest.indices
    first = x.min(1, keepdim=True)
    second = x.scatter(1, first.indices, torch.inf).min(1, keepdim=True)
    return torch.cat([first.values, second.values], 1), torch.cat([first.indices, second.indices], 1)


def _refined(
    queries: Tensor, memory: Tensor, k: int, index: Tensor, exclude: Tensor | None, memory_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the k nearest of the candidates (n, count) by the norms of differences."""
    index = index.sort(dim=1).values
    distances = torch.linalg.vector_norm(queries[:, None] - memory[index].to(queries.dtype), dim=2)
    if exclude is not None and memory_ids is not None:
        distances = distances.masked_fill(memory_ids[index] == exclude[:, None], torch.inf)
    # ONNX has no stable sort, but its TopK takes the first of equal values.
    found = distances.topk(k, largest=False) if is_traced() else distances.sort(dim=1, stable=True)
    distances, order = found
    return distances[:, :k], index.gather(1, order[:, :k])
