"""Flows of FrEIA as they are, behind this library's interface."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..flows import Flow
from ..flows.base import Result, check_channels
from ..functional import from_locations, to_locations
from ..nn import Context, PositionTables
from ..nn.subnets import check_context
from .freia import condition_index, is_sequence

__all__ = ["FreiaFlow", "as_flow"]


def as_flow(inn: nn.Module) -> "FreiaFlow":
    """A FrEIA `SequenceINN` of any blocks as a flow: it is wrapped, not converted, and runs FrEIA's own code.

    For what `from_freia` refuses (GIN and GLOW couplings, splines, subnets of your own); where that takes a flow, it
    is faster. The parameters are those of `inn`, and train there.

    Args:
        inn: a `SequenceINN(C)` of vectors, which is applied at every location by itself: event `"location"`; or a
            `SequenceINN(C, H, W)` of maps: event `"sample"`, as FrEIA gives a log-det of the map alone. At most one
            condition, (D,) or (D, H, W).

    Raises:
        ConfigError: `inn` is no SequenceINN, changes the shape, takes several conditions, or is of other dimensions.

    Example:
        >>> from FrEIA.framework import SequenceINN
        >>> from FrEIA.modules import GLOWCouplingBlock
        >>> inn = SequenceINN(6)
        >>> inn.append(GLOWCouplingBlock, subnet_constructor=nn.Linear)
        >>> flow = as_flow(inn)
        >>> z, log_det = flow(torch.randn(2, 6, 3, 4))
        >>> flow.event, z.shape, log_det.shape
        ('location', torch.Size([2, 6, 3, 4]), torch.Size([2, 3, 4]))
    """
    return FreiaFlow(inn)


class FreiaFlow(Flow):
    """What `as_flow` gives: z, log_det = inn(x, [context]), the locations as a batch where `inn` is of vectors."""

    def __init__(self, inn: nn.Module) -> None:
        super().__init__()
        if not is_sequence(inn):
            raise ConfigError(
                f"inn must be FrEIA's SequenceINN, but got {type(inn).__module__}.{type(inn).__qualname__}; "
                "append blocks to a SequenceINN first"
            )
        self.condition = condition_index(inn)
        shapes: list[tuple[int, ...]] = [tuple(shape) for shape in cast(Any, inn).shapes]
        if len(shapes[0]) not in (1, 3):
            raise ConfigError(f"inn must be a SequenceINN(C) or SequenceINN(C, H, W), but got dimensions {shapes[0]}")
        if shapes[-1] != shapes[0]:
            raise ConfigError(f"inn must keep the shape of what it maps, but got {shapes[0]} to {shapes[-1]}")
        self.inn = inn
        self.channels = shapes[0][0]
        self.context_channels = 0
        for block, index in zip(cast(Any, inn).module_list, cast(Any, inn).conditions, strict=True):
            if index is not None:
                self.context_channels = block.dims_c[0][0]
        self.event = "location" if len(shapes[0]) == 1 else "sample"

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """(B, C, H, W) to z of that shape and log_det (B, H, W), or (B,) where the event is the sample."""
        z, log_det = self._run(x, context, rev=False)
        # Blocks that keep the volume give a plain 0.
        log_det = torch.as_tensor(log_det, dtype=z.dtype, device=z.device)
        if self.event == "sample":
            return z, log_det.expand(len(x))
        return z, log_det.expand(x[:, 0].numel()).view(len(x), *x.shape[2:])

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """The x that `forward` maps to z."""
        return self._run(z, context, rev=True)[0]

    def _run(self, x: Tensor, context: Context, rev: bool) -> tuple[Tensor, Tensor | float]:
        check_channels(x, self.channels)
        check_context(context, self.context_channels, x)
        by_location = self.event == "location"
        conditions: list[Tensor] = []
        if self.condition is not None and context is not None:
            dense = context.dense() if isinstance(context, PositionTables) else context
            dense = dense.to(x).expand(len(x), -1, -1, -1)
            conditions = [to_locations(dense) if by_location else dense] * (self.condition + 1)
        # FrEIA sums the log-det in the precision of the layers, so these are not left to autocast.
        with torch.autocast(x.device.type, enabled=False):
            y, log_det = self.inn(to_locations(x) if by_location else x, conditions, rev=rev)
        y = y if isinstance(y, Tensor) else y[0]  # with force_tuple_output it is a tuple, or a list
        return from_locations(y, (x.shape[2], x.shape[3])) if by_location else y, log_det

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{self.channels}, event={self.event}"
