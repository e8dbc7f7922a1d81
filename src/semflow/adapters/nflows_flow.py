"""Adapter for nflows."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from semflow._optional import import_optional
from semflow.errors import ConfigError
from semflow.flows import Event

from .foreign import ForeignFlow, check_event, describe


class NFlowsFlow(ForeignFlow):
    """Flow of an nflows transform: z, log_det = transform(x, context).

    Of a whole `nflows.flows.Flow`, the transform and the embedding of the context are used, not the base distribution.

    Args:
        flow: an `nflows.transforms.Transform`, a list of them, or a `Flow`.
        event: `"location"` if it maps vectors (C,), `"sample"` if it maps (C, H, W); an nflows transform does not know.

    Example:
        >>> import torch
        >>> from nflows.transforms import LULinear
        >>> flow = NFlowsFlow(LULinear(6), event="location")
        >>> z, log_det = flow(torch.randn(2, 6, 3, 4))
        >>> z.shape, log_det.shape
        (torch.Size([2, 6, 3, 4]), torch.Size([2, 3, 4]))
    """

    def __init__(self, flow: nn.Module | Sequence[nn.Module], event: Event | None = None) -> None:
        transforms, flows = import_optional("nflows.transforms"), import_optional("nflows.flows")
        event = check_event(event, "a flow of nflows")
        transform, embedding = cast(Any, flow), None
        if isinstance(flow, flows.Flow):
            transform, embedding = transform._transform, transform._embedding_net
        is_list = isinstance(flow, Sequence | nn.ModuleList)
        for part in transform if is_list else [transform]:
            if not isinstance(part, transforms.Transform):
                raise ConfigError(f"flow must be a Transform or a Flow of nflows, but got {describe(part)}")
        transform = transforms.CompositeTransform(transform) if is_list else transform
        label = f"nflows' {type(transform).__name__}"
        super().__init__(event, "rows" if event == "location" else "maps", label, declared=True)
        self.transform, self.embedding = transform, embedding

    def _encode(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | float]:
        return cast(tuple[Tensor, Tensor], self.transform(x, self._embed(context)))

    def _decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        return cast(Tensor, self.transform.inverse(z, self._embed(context))[0])

    def _embed(self, context: Tensor | None) -> Tensor | None:
        return context if self.embedding is None or context is None else cast(Tensor, self.embedding(context))
