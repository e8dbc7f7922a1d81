"""Flows of FrEIA as they are, behind this library's interface."""

from typing import Any

from torch import Tensor, nn

from semflow.errors import ConfigError
from semflow.flows.base import Result, check_channels
from semflow.nn import Context
from semflow.nn.subnets import check_context

from .foreign import ForeignFlow, describe
from .freia import condition_index, is_sequence

__all__ = ["FreiaFlow", "is_graph"]


class FreiaFlow(ForeignFlow):
    """z, log_det = inn(x, conditions) of a FrEIA network, the locations as a batch where it is of vectors.

    The event is known: `"location"` for a network of vectors (C,), `"sample"` for one of maps (C, H, W), of which FrEIA
    gives the log-det of the whole.

    Args:
        inn: a `SequenceINN` with at most one condition, or a `GraphINN` with one input and one output of the same
            shape. The conditions of a graph, (D_i,) or (D_i, H, W), are the channels of the context, D = D_1 + D_2 ...,
            in the order of its condition nodes.

    Raises:
        ConfigError: `inn` is another thing, changes the shape, or is of other dimensions.

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
        shape, conditions, missing = _read(inn)
        if len(shape) == 1:
            super().__init__("location", "rows")
        else:
            super().__init__("sample", "maps")
        self.inn = inn
        self.channels, self.conditions, self.missing = shape[0], conditions, missing
        self.context_channels = sum(self.conditions)

    def encode(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """FrEIA's forward."""
        return self._run(x, context, rev=False)

    def decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        """FrEIA's forward, reversed."""
        return self._run(z, context, rev=True)[0]

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """(B, C, H, W) to z of that shape and log_det (B, H, W), or (B,) where the event is the sample."""
        self._check(x, context)
        return super().forward(x, context if self.context_channels else None)

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """The x that `forward` maps to z."""
        self._check(z, context)
        return super().inverse(z, context if self.context_channels else None)

    def _check(self, x: Tensor, context: Context) -> None:
        check_channels(x, self.channels)
        check_context(context, self.context_channels, x)

    def _run(self, x: Tensor, context: Tensor | None, rev: bool) -> tuple[Tensor, Tensor | float]:
        parts: list[Tensor] = []
        if context is not None:
            # A SequenceINN numbers its conditions, and may leave out the first.
            parts = list(context.split(self.conditions, dim=1))
            parts = parts[:1] * self.missing + parts
        y, log_det = self.inn(x, parts, rev=rev)
        return y if isinstance(y, Tensor) else y[0], log_det  # with force_tuple_output it is a tuple, or a list

    @property
    def called(self) -> str:
        """The network in messages."""
        return type(self.inn).__name__

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{self.channels}, event={self.event}"


def is_graph(module: object) -> bool:
    """Whether it has what FrEIA's GraphINN has."""
    names = ("node_list", "in_nodes", "out_nodes", "condition_nodes", "global_out_shapes")
    return isinstance(module, nn.Module) and all(hasattr(module, name) for name in names)


def _read(inn: Any) -> tuple[tuple[int, ...], list[int], int]:
    """The shape that the network keeps, the channels of its conditions, and how many conditions come before them."""
    conditions: list[int] = []
    missing = 0
    if is_sequence(inn):
        kind = "SequenceINN"
        index = condition_index(inn)
        if index is not None:
            widths = [
                block.dims_c[0][0] for block, i in zip(inn.module_list, inn.conditions, strict=True) if i is not None
            ]
            conditions, missing = widths[:1], index
        first, last = tuple(inn.shapes[0]), tuple(inn.shapes[-1])
    elif is_graph(inn):
        kind = "GraphINN"
        if (len(inn.in_nodes), len(inn.out_nodes)) != (1, 1):
            raise ConfigError(
                f"inn must have one input and one output, since a flow maps one feature map, but this GraphINN has "
                f"{len(inn.in_nodes)} and {len(inn.out_nodes)}; concatenate them within the graph"
            )
        conditions = [node.dims[0] for node in inn.condition_nodes]
        first, last = tuple(inn.in_nodes[0].dims), tuple(inn.global_out_shapes[0])
    else:
        raise ConfigError(
            f"inn must be FrEIA's SequenceINN or GraphINN, but got {describe(inn)}; append blocks to one of them first"
        )
    if len(first) not in (1, 3):
        raise ConfigError(f"inn must be a {kind} of (C,) or (C, H, W), but got dimensions {first}")
    if last != first:
        raise ConfigError(f"inn must keep the shape of what it maps, but got {first} to {last}")
    return first, conditions, missing
