"""PatchCore's reweighting of the distance to the nearest stored vector."""

from typing import Any

import torch
from torch import Tensor

from semflow._validation import at_least
from semflow.functional import nearest


def reweighted_distance(
    queries: Tensor,
    memory: Tensor,
    neighbors: int = 9,
    *,
    exclude: Tensor | None = None,
    memory_ids: Tensor | None = None,
    chunk_bytes: int = 2**26,
) -> Tensor:
    """Compute PatchCore's reweighted distance (n,) of queries to a memory (Roth et al., CVPR 2022, Eq. 7).

    With m the nearest row of the memory to a query q and N the `neighbors` rows nearest to m, itself included, it is
    (1 - exp |q - m| / sum_{n in N} exp |q - n|) |q - m|: less if m is far from other rows. For one neighbor it is
    |q - m|.

    Args:
        queries: Vectors of shape (n, C).
        memory: Vectors of shape (M, C).
        neighbors: Number of neighbors, as many as there are if M is less.
        exclude: See `semflow.functional.nearest`.
        memory_ids: See `semflow.functional.nearest`.
        chunk_bytes: See `semflow.functional.nearest`.

    Example:
        >>> memory = torch.tensor([[0.0], [1.0], [9.0]])
        >>> reweighted_distance(torch.tensor([[-2.0]]), memory, neighbors=2)  # 2 (1 - 1 / (1 + e))
        tensor([1.4621])
    """
    at_least(1, neighbors=neighbors)
    options: dict[str, Any] = {"exclude": exclude, "memory_ids": memory_ids, "chunk_bytes": chunk_bytes}
    _, rows = nearest(queries.detach(), memory, 1, **options)
    center = memory[rows[:, 0]]
    distance: Tensor = torch.linalg.vector_norm(queries - center, dim=1)
    if neighbors == 1:
        return distance
    found, support = nearest(center, memory, min(neighbors, len(memory)), **options)
    distances: Tensor = torch.linalg.vector_norm(queries[:, None] - memory[support], dim=2)
    weights = distances.masked_fill(found == torch.inf, -torch.inf).softmax(1)
    return (1 - weights[:, 0]) * distance
