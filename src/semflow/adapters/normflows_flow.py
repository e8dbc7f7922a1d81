"""Adapter for normflows."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from semflow._optional import import_optional
from semflow.errors import ConfigError
from semflow.flows import Event

from .foreign import ForeignFlow, check_event, describe


class NormflowsFlow(ForeignFlow):
    """Flow of normflows, whose flows map noise to data: x goes through their inverses, last to first.

    Of a whole `NormalizingFlow`, the list of flows is used, not the base `q0`. Log-dets are added up in the dtype of x:
    normflows' own `inverse_and_log_det` adds them up in float32 even if everything is float64.

    Args:
        flow: a `NormalizingFlow` or `ConditionalNormalizingFlow`, a flow, or a list of flows in their order.
        event: `"location"` if it maps vectors (C,), `"sample"` if it maps (C, H, W); a flow of normflows does not know.

    Example:
        >>> from normflows.flows import LULinearPermute
        >>> flow = NormflowsFlow([LULinearPermute(6)], event="location")
        >>> z, log_det = flow(torch.randn(2, 6, 3, 4))
        >>> z.shape, log_det.shape
        (torch.Size([2, 6, 3, 4]), torch.Size([2, 3, 4]))
    """

    def __init__(self, flow: nn.Module | Sequence[nn.Module], event: Event | None = None) -> None:
        normflows = import_optional("normflows")
        event = check_event(event, "a flow of normflows")
        parts: Any = [flow] if isinstance(flow, normflows.flows.Flow) else flow
        if isinstance(flow, normflows.NormalizingFlow):
            parts = flow.flows
        if not isinstance(parts, Sequence | nn.ModuleList) or not len(parts):
            raise ConfigError(
                f"flow must be a NormalizingFlow or a list of flows of normflows, but got {describe(flow)}"
            )
        for position, part in enumerate(parts):
            if not isinstance(part, normflows.flows.Flow):
                raise ConfigError(f"flow[{position}] must be a flow of normflows, but got {describe(part)}")
        label = f"normflows' {' and '.join(dict.fromkeys(type(part).__name__ for part in parts))}"
        super().__init__(event, "rows" if event == "location" else "maps", label, declared=True)
        self.flows = nn.ModuleList(parts)

    def _encode(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | float]:
        options = {} if context is None else {"context": context}
        total = torch.zeros(x.shape[0], dtype=x.dtype, device=x.device)
        for flow in reversed(self.flows):
            x, log_det = cast(Any, flow).inverse(x, **options)
            total = total + log_det
        return x, total

    def _decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        for flow in self.flows:
            z, _ = flow(z) if context is None else flow(z, context=context)
        return z
