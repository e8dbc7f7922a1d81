"""Adapter for any function that returns (z, log_det)."""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor

from semflow.errors import ConfigError, ShapeError
from semflow.flows import Event

from .foreign import ForeignFlow, check_event, describe
from .held import held_by


class CallableFlow(ForeignFlow):
    """Flow of a function and its inverse: z, log_det = function(x), x = inverse(z).

    Both receive the context as a second argument if there is one. The modules and tensors that they refer to, by
    attributes, closures or global names, are registered, so they train, move and are saved with the flow.

    Args:
        function: returns (z, log_det).
        event: `"location"` or `"sample"`.
        inverse: returns x, or a tuple that begins with x; by default `function.inverse`.
        maps: whether both take maps (B, C, H, W). By default they take locations as rows (N, C) with log_det (N,) for
            the event `"location"`, and maps with log_det (B,) for `"sample"`. With `maps=True` and the event
            `"location"`, log_det must be (B, H, W).

    Example:
        >>> import torch
        >>> flow = CallableFlow(lambda x: (x.exp(), x.sum(1)), "location", inverse=torch.log)
        >>> z, log_det = flow(torch.randn(2, 6, 3, 4))
        >>> log_det.shape, flow.inverse(z).shape
        (torch.Size([2, 3, 4]), torch.Size([2, 6, 3, 4]))
    """

    def __init__(
        self,
        function: Callable[..., tuple[Tensor, Tensor]],
        event: Event | None = None,
        inverse: Callable[..., Any] | None = None,
        maps: bool | None = None,
    ) -> None:
        if not callable(function):
            raise ConfigError(f"flow must be callable and return (z, log_det), but got {describe(function)}")
        inverse = getattr(function, "inverse", None) if inverse is None else inverse
        if not callable(inverse):
            raise ConfigError(
                f"flow must have a method inverse, but got {describe(function)} without one; "
                "call CallableFlow(function, event, inverse=...)"
            )
        event = check_event(event, "a callable")
        if event == "sample" and maps is False:
            raise ConfigError("maps must be True or None if event is 'sample', but got False")
        label = getattr(function, "__qualname__", type(function).__qualname__)
        super().__init__(event, "maps" if maps or event == "sample" else "rows", label, declared=True)
        self.function, self.inverse_function = function, inverse
        self.hold(held_by(function, inverse))

    def _encode(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | float]:
        result = self.function(x) if context is None else self.function(x, context)
        if not isinstance(result, tuple) or len(result) != 2:
            raise ShapeError(f"{self.label} must return (z, log_det), but got {type(result).__name__}")
        return result

    def _decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        result: Any = self.inverse_function(z) if context is None else self.inverse_function(z, context)
        return cast(Tensor, result[0] if isinstance(result, tuple) else result)

    def _event_hint(self) -> str:
        if self.event == "sample":
            return f"{super()._event_hint()}; if its log_det is (B, H, W), its event is 'location' with maps=True"
        if self.layout == "maps":
            return "; if its log_det is (B,), its event is 'sample'; if it maps vectors (C,), leave maps out"
        return f"{super()._event_hint()}; if its log_det is (B, H, W), set maps=True"
