"""Adapter for zuko."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from semflow._optional import import_optional
from semflow.errors import ConfigError, ShapeError
from semflow.flows import Event

from .foreign import ForeignFlow, check_event, describe


class ZukoFlow(ForeignFlow):
    """Flow of zuko: z, log_det = transform(context).call_and_ladj(x).

    Zuko's transforms map vectors, so the event is `"location"`. Of a whole `zuko.flows.Flow`, the lazy transform is
    used, not the base.

    Args:
        flow: a `Flow`, a `LazyTransform`, or a list of lazy transforms, first to last from data to noise.
        event: can be left out.

    Example:
        >>> import torch, zuko
        >>> flow = ZukoFlow(zuko.flows.MAF(features=6, transforms=2, hidden_features=(16,)))
        >>> z, log_det = flow(torch.randn(2, 6, 3, 4))
        >>> z.shape, log_det.shape
        (torch.Size([2, 6, 3, 4]), torch.Size([2, 3, 4]))
    """

    def __init__(self, flow: nn.Module | Sequence[nn.Module], event: Event | None = None) -> None:
        lazy = import_optional("zuko.lazy")
        event = check_event(event, "a flow of zuko", "location")
        transform: Any = cast(Any, flow).transform if isinstance(flow, lazy.Flow) else flow
        if isinstance(flow, Sequence | nn.ModuleList) and all(isinstance(part, lazy.LazyTransform) for part in flow):
            transform = lazy.LazyComposedTransform(*flow)
        if not isinstance(transform, lazy.LazyTransform):
            raise ConfigError(
                f"flow must be a Flow or a LazyTransform of zuko, but got {describe(flow)}; "
                "pass the flow itself, not the distribution that it returns"
            )
        super().__init__(event, "last", f"zuko's {type(transform).__name__}")
        self.transform = transform
        coupling = import_optional("zuko.flows.coupling").GeneralCouplingTransform
        self.masks = {part.mask.numel() for part in transform.modules() if isinstance(part, coupling)}

    def _encode(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | float]:
        return cast(tuple[Tensor, Tensor], self._conditioned(x, context).call_and_ladj(x))

    def _decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        return cast(Tensor, self._conditioned(z, context).inv(z))

    def _conditioned(self, x: Tensor, context: Tensor | None) -> Any:
        # With more channels than its mask, a coupling of zuko leaves the others uninitialized instead of raising.
        for channels in self.masks - {x.shape[-1]}:
            raise ShapeError(f"x must be (B, {channels}, H, W), but got {x.shape[-1]} channels")
        transform: Any = self.transform(context)
        if (dims := transform.domain.event_dim) > 1:
            raise ShapeError(f"{self.label} must have event_dim 0 or 1, but got {dims}")
        return transform
