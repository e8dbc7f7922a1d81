"""Flows of zuko behind this library's interface."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from semflow.errors import ConfigError, ShapeError
from semflow.flows import Event

from .foreign import ForeignFlow, check_event, describe, library

__all__ = ["ZukoFlow"]


class ZukoFlow(ForeignFlow):
    """z, log_det = transform(context)(x) of zuko, which maps vectors whatever stands before them: (B, H, W, C).

    So the event is `"location"`. Of a whole `zuko.flows.Flow` the lazy transform is used, not its base.

    Args:
        flow: a `Flow` or `LazyTransform`, or a list of lazy transforms, first to last from data to noise.
        event: need not be declared.

    Raises:
        ConfigError: it is another thing, another event is declared, or zuko is not installed.

    Example:
        >>> import torch, zuko
        >>> flow = ZukoFlow(zuko.flows.MAF(features=6, transforms=2, hidden_features=(16,)))
        >>> z, log_det = flow(torch.randn(2, 6, 3, 4))
        >>> z.shape, log_det.shape
        (torch.Size([2, 6, 3, 4]), torch.Size([2, 3, 4]))
    """

    def __init__(self, flow: nn.Module | Sequence[nn.Module], event: Event | None = None) -> None:
        lazy = library("zuko.lazy", "zuko")
        super().__init__(check_event(event, "a flow of zuko", "location"), "last")
        transform: Any = cast(Any, flow).transform if isinstance(flow, lazy.Flow) else flow
        if isinstance(flow, Sequence | nn.ModuleList) and all(isinstance(part, lazy.LazyTransform) for part in flow):
            transform = lazy.LazyComposedTransform(*flow)
        if not isinstance(transform, lazy.LazyTransform):
            raise ConfigError(
                f"flow must be a Flow or a LazyTransform of zuko, but got {describe(flow)}; "
                "give the flow itself, not the distribution that it makes"
            )
        self.transform: nn.Module = transform
        coupling = library("zuko.flows.coupling", "zuko").GeneralCouplingTransform
        self.masks = {part.mask.numel() for part in transform.modules() if isinstance(part, coupling)}

    def encode(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """The transform and its log-det."""
        transform: Any = self._given(x, context)
        return cast(tuple[Tensor, Tensor], transform.call_and_ladj(x))

    def decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        """The inverse transform."""
        x: Tensor = cast(Any, self._given(z, context)).inv(z)
        return x

    def _given(self, x: Tensor, context: Tensor | None) -> Any:
        # Of more channels than a coupling's mask has, zuko maps those that it has and leaves the others as memory was.
        for channels in self.masks - {x.shape[-1]}:
            raise ShapeError(
                f"x must be (B, {channels}, H, W), as the flow was made for, but it has {x.shape[-1]} channels"
            )
        transform: Any = self.transform(context)
        if transform.domain.event_dim > 1:
            raise ShapeError(
                f"flow must be a transform of vectors, event_dim 1, but zuko's {type(self.transform).__name__} has "
                f"{transform.domain.event_dim}"
            )
        return transform

    @property
    def called(self) -> str:
        """The transform in messages."""
        return f"zuko's {type(self.transform).__name__}"
