"""Statistics that are predicted once for a batch whose loss is computed in parts."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from semflow.nn import Statistics


class Predicted:
    """Statistics of a batch at each scale, which collect the gradients of all parts of its loss.

    Args:
        statistics: of each scale, None without.

    Attributes:
        leaves: the same, detached.
    """

    def __init__(self, statistics: Sequence[Statistics | None]) -> None:
        self._statistics = statistics
        self.leaves = [s and _each(s, lambda x: x.detach().requires_grad_(x.requires_grad)) for s in statistics]

    def of(self, span: slice) -> list[Statistics | None]:
        """Return those of some images."""
        return [s and _each(s, lambda x: x[span]) for s in self.leaves]

    def backward(self, parts: Sequence[int] | None = None) -> bool:
        """Pass on the gradients, of scale k divided by `parts[k]`; return False if there are none."""
        outputs, gradients = [], []
        for scale, (s, leaf) in enumerate(zip(self._statistics, self.leaves, strict=True)):
            for value, copy in zip(s or (), leaf or (), strict=True):
                if value is not None and copy is not None and copy.grad is not None:
                    outputs.append(value)
                    gradients.append(copy.grad / (parts[scale] if parts else 1))
        if outputs:
            torch.autograd.backward(outputs, gradients)
        return bool(outputs)


def _each(statistics: Statistics, change: Callable[[Tensor], Tensor]) -> Statistics:
    return Statistics(*(None if x is None else change(x) for x in statistics))  # type: ignore[arg-type]
