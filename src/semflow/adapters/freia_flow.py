"""Adapter for FrEIA's networks."""

from typing import Any

from torch import Tensor, nn

from semflow.errors import ConfigError
from semflow.flows.base import check_channels
from semflow.nn import Context
from semflow.nn.subnets import check_context

from .foreign import ForeignFlow, describe


class FreiaFlow(ForeignFlow):
    """Flow of a FrEIA network: z, log_det = inn(x, conditions).

    The event is `"location"` for a network of vectors (C,), whose batch are the locations, and `"sample"` for one of
    maps (C, H, W), whose log-det FrEIA computes for the whole map.

    Args:
        inn: a `SequenceINN` with at most one condition, or a `GraphINN` with one input and one output of the same
            shape. The conditions of a graph, (D_i,) or (D_i, H, W), are the channels of the context, D = D_1 + D_2 ...,
            in the order of its condition nodes.

    Example:
        >>> from FrEIA.framework import SequenceINN
        >>> from FrEIA.modules import GLOWCouplingBlock
        >>> inn = SequenceINN(6)
        >>> inn.append(GLOWCouplingBlock, subnet_constructor=nn.Linear)
        >>> FreiaFlow(inn).event
        'location'
    """

    def __init__(self, inn: nn.Module) -> None:
        network: Any = inn
        skipped = 0  # unused conditions before the one that is used
        if is_sequence(inn):
            first, last = tuple(network.shapes[0]), tuple(network.shapes[-1])
            skipped = condition_index(inn) or 0
            blocks = zip(network.module_list, network.conditions, strict=True)
            conditions = [block.dims_c[0][0] for block, index in blocks if index is not None][:1]
        elif is_graph(inn):
            ends = len(network.in_nodes), len(network.out_nodes)
            if ends != (1, 1):
                raise ConfigError(
                    f"inn must have one input and one output, but got a GraphINN with {ends[0]} and {ends[1]}; "
                    "concatenate them in the graph"
                )
            first, last = tuple(network.in_nodes[0].dims), tuple(network.global_out_shapes[0])
            conditions = [node.dims[0] for node in network.condition_nodes]
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

    def _encode(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | float]:
        return self._run(x, context, rev=False)

    def _decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        return self._run(z, context, rev=True)[0]

    def _check_input(self, x: Tensor, context: Context) -> Context:
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


def _has(module: object, *names: str) -> bool:
    return isinstance(module, nn.Module) and all(hasattr(module, name) for name in names)
