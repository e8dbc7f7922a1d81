"""Adapter for FrEIA's networks."""

from typing import Any

from torch import Tensor, nn

from semflow.errors import ConfigError
from semflow.flows.base import check_channels
from semflow.nn import Context
from semflow.nn.subnets import check_context

from .foreign import ForeignFlow, describe

__all__ = ["FreiaFlow", "condition_index", "is_graph", "is_sequence"]


class FreiaFlow(ForeignFlow):
    """Flow of a FrEIA network: z, log_det = inn(x, conditions).

    The event is `"location"` for a network of vectors (C,), whose batch are the locations, and `"sample"` for one of
    maps (C, H, W), whose log-det FrEIA computes for the whole map.

    Args:
        inn: a `SequenceINN` with at most one condition, or a `GraphINN` with one input and one output of the same
            shape. The conditions of a graph, (D_i,) or (D_i, H, W), are the channels of the context, D = D_1 + D_2 ...,
            in the order of its condition nodes.

    Example:
        >>> import torch
        >>> from FrEIA.framework import SequenceINN
        >>> from FrEIA.modules import GLOWCouplingBlock
        >>> inn = SequenceINN(6)
        >>> inn.append(GLOWCouplingBlock, subnet_constructor=nn.Linear)
        >>> flow = FreiaFlow(inn)
        >>> z, log_det = flow(torch.randn(2, 6, 3, 4))
        >>> flow.event, z.shape, log_det.shape
        ('location', torch.Size([2, 6, 3, 4]), torch.Size([2, 3, 4]))
    """

    def __init__(self, inn: nn.Module) -> None:
        if is_sequence(inn):
            first, last, conditions, skipped = _read_sequence(inn)
        elif is_graph(inn):
            first, last, conditions, skipped = _read_graph(inn)
        else:
            raise ConfigError(f"inn must be a SequenceINN or a GraphINN of FrEIA, but got {describe(inn)}")
        if len(first) not in (1, 3):
            raise ConfigError(f"inn must map (C,) or (C, H, W), but got dimensions {first}")
        if last != first:
            raise ConfigError(f"inn must keep the shape of its input, but got {first} to {last}")
        super().__init__(*(("location", "rows") if len(first) == 1 else ("sample", "maps")), type(inn).__name__)
        self.inn = inn
        self.channels, self.conditions, self.skipped = first[0], conditions, skipped
        self.context_channels = sum(conditions)

    def encode(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """Call the network."""
        return self._run(x, context, rev=False)

    def decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        """Call the network in reverse."""
        return self._run(z, context, rev=True)[0]

    def check_input(self, x: Tensor, context: Context) -> Context:
        """Raise ShapeError unless x and the context have the network's channels; return the context if it has any."""
        check_channels(x, self.channels)
        check_context(context, self.context_channels, x)
        return context if self.context_channels else None

    def extra_repr(self) -> str:
        """Return the channels and the event for `repr`."""
        return f"{self.channels}, event={self.event}"

    def _run(self, x: Tensor, context: Tensor | None, rev: bool) -> tuple[Tensor, Tensor | float]:
        parts = [] if context is None else list(context.split(self.conditions, dim=1))
        y, log_det = self.inn(x, parts[:1] * self.skipped + parts, rev=rev)
        return y if isinstance(y, Tensor) else y[0], log_det  # with force_tuple_output it is a tuple, or a list


def is_sequence(module: object) -> bool:
    """Return whether a module has the attributes of FrEIA's SequenceINN."""
    return _has(module, "module_list", "conditions", "shapes")


def is_graph(module: object) -> bool:
    """Return whether a module has the attributes of FrEIA's GraphINN."""
    return _has(module, "node_list", "in_nodes", "out_nodes", "condition_nodes", "global_out_shapes")


def condition_index(sequence: nn.Module) -> int | None:
    """Return which condition the blocks of a SequenceINN use, or None if they use none."""
    conditions: list[int | None] = list(sequence.conditions)  # type: ignore[arg-type]
    if not conditions:
        raise ConfigError("inn must hold at least one block, but got an empty SequenceINN")
    used = sorted({index for index in conditions if index is not None})
    if len(used) > 1:
        raise ConfigError(
            f"cond must be the same for all blocks of a SequenceINN, since a flow has one context, but got {used}; "
            "adapt the blocks one by one"
        )
    return used[0] if used else None


Shapes = tuple[tuple[int, ...], tuple[int, ...], list[int], int]
"""Shapes of the input and the output, channels of the conditions, and the number of unused conditions before them."""


def _read_sequence(inn: Any) -> Shapes:
    conditions: list[int] = []
    index = condition_index(inn)
    if index is not None:
        blocks = zip(inn.module_list, inn.conditions, strict=True)
        conditions = [next(block.dims_c[0][0] for block, i in blocks if i is not None)]
    return tuple(inn.shapes[0]), tuple(inn.shapes[-1]), conditions, index or 0


def _read_graph(inn: Any) -> Shapes:
    ends = len(inn.in_nodes), len(inn.out_nodes)
    if ends != (1, 1):
        raise ConfigError(
            f"inn must have one input and one output, but got a GraphINN with {ends[0]} and {ends[1]}; "
            "concatenate them in the graph"
        )
    conditions = [node.dims[0] for node in inn.condition_nodes]
    return tuple(inn.in_nodes[0].dims), tuple(inn.global_out_shapes[0]), conditions, 0


def _has(module: object, *names: str) -> bool:
    return isinstance(module, nn.Module) and all(hasattr(module, name) for name in names)
