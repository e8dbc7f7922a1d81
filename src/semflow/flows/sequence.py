"""Composition of flows."""

from collections.abc import Iterable, Iterator
from typing import Any, cast

from torch import Tensor, nn

from semflow.errors import ConfigError
from semflow.nn import Context

from .base import Flow, Result, check_event
from .fused_block import find_block

__all__ = ["FlowSequence"]


class FlowSequence(Flow):
    """Composition of flows, first to last, whose log-dets are summed (SANFlow, Eq. 3).

    The event is `"sample"` if that of one member is; log-dets of the other members are then summed over locations.

    Args:
        flows: At least one flow; all get the same context.

    Example:
        >>> import torch
        >>> from semflow.flows import AffineCoupling, GlobalAffine, HardPermutation
        >>> flow = FlowSequence([AffineCoupling(8), GlobalAffine(8), HardPermutation(8)])
        >>> x = torch.randn(2, 8, 4, 4)
        >>> z, log_det = flow(x)
        >>> torch.allclose(flow.inverse(z), x, atol=1e-5), log_det.shape
        (True, torch.Size([2, 4, 4]))
    """

    def __init__(self, flows: Iterable[nn.Module]) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)
        if not len(self.flows):
            raise ConfigError("flows must contain at least one flow, but got none")
        events = [check_event(flow, f"flows[{position}]") for position, flow in enumerate(self.flows)]
        self.event = "sample" if "sample" in events else "location"

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """Apply all flows and sum their log-dets, (B, H, W) or (B,) depending on the event."""
        total: Tensor | None = None
        for flow in self._steps(x):
            x, log_det = flow(x, context)
            if self.event == "sample" and flow.event == "location":
                log_det = log_det.sum((1, 2))
            total = log_det if total is None else total + log_det
        return x, cast(Tensor, total)

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """Apply the inverses, last to first."""
        for flow in reversed(self.flows):
            z = cast(Flow, flow).inverse(z, context)
        return z

    def _steps(self, x: Tensor) -> Iterator[Any]:
        """Yield the flows, with blocks fused where a kernel exists."""
        position = 0
        while position < len(self.flows):
            block = find_block(list(self.flows[position : position + 3]), x)
            yield block or self.flows[position]
            position += 3 if block else 1

    def __len__(self) -> int:
        return len(self.flows)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.flows)

    def __getitem__(self, index: int) -> nn.Module:
        return self.flows[index]
