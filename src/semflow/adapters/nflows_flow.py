"""Flows of nflows behind this library's interface."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from semflow.errors import ConfigError
from semflow.flows import Event

from .foreign import ForeignFlow, check_event, describe, library

__all__ = ["NFlowsFlow"]


class NFlowsFlow(ForeignFlow):
    """z, log_det = transform(x, context) of nflows, whose transforms go from data to noise.

    Of a whole `nflows.flows.Flow` the transform and the embedding of the context are used, not its base distribution.

    Args:
        flow: an `nflows.transforms.Transform` (a `CompositeTransform`, say), a list of them, or a `Flow`.
        event: `"location"` where it maps vectors (C,), `"sample"` where it maps (C, H, W). It has to be declared, since
            an nflows transform does not know.

    Raises:
        ConfigError: it is another thing, the event is not declared, or nflows is not installed.

    Example:
        >>> import torch
        >>> from nflows.transforms import LULinear
        >>> flow = NFlowsFlow(LULinear(6), event="location")
        >>> z, log_det = flow(torch.randn(2, 6, 3, 4))
        >>> z.shape, log_det.shape
        (torch.Size([2, 6, 3, 4]), torch.Size([2, 3, 4]))
    """

    def __init__(self, flow: nn.Module | Sequence[nn.Module], event: Event | None = None) -> None:
        transforms, flows = library("nflows.transforms", "nflows"), library("nflows.flows", "nflows")
        event = check_event(event, "a flow of nflows")
        super().__init__(event, "rows" if event == "location" else "maps", declared=True)
        transform: Any = flow
        embedding: nn.Module | None = None
        if isinstance(flow, flows.Flow):
            transform, embedding = cast(Any, flow)._transform, cast(Any, flow)._embedding_net
        parts = flow if isinstance(flow, Sequence | nn.ModuleList) else [transform]
        for part in parts:
            if not isinstance(part, transforms.Transform):
                raise ConfigError(f"flow must be a Transform or a Flow of nflows, but got {describe(part)}")
        if parts is flow:
            transform = transforms.CompositeTransform(parts)
        self.transform: nn.Module = transform
        self.embedding = embedding

    def encode(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """Transform forward."""
        return cast(tuple[Tensor, Tensor], self.transform(x, self._embed(context)))

    def decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        """Transform inverse."""
        x: Tensor = cast(Any, self.transform).inverse(z, self._embed(context))[0]
        return x

    def _embed(self, context: Tensor | None) -> Tensor | None:
        return context if self.embedding is None or context is None else cast(Tensor, self.embedding(context))

    @property
    def called(self) -> str:
        """The transform in messages."""
        return f"nflows' {type(self.transform).__name__}"
