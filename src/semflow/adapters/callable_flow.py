"""Any function that gives (z, log_det) behind this library's interface."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from semflow.errors import ConfigError, ShapeError
from semflow.flows import Event

from .foreign import ForeignFlow, Layout, check_event, describe

__all__ = ["CallableFlow"]


class CallableFlow(ForeignFlow):
    """z, log_det = function(x) and x = function.inverse(z), or with a second argument where there is a context.

    Modules among what is called (a module, or the one whose method it is) are registered, so that their parameters
    train and are saved. Parameters that a bare function closes over are not: give those to the optimizer yourself.

    Args:
        function: gives (z, log_det).
        event: `"location"` or `"sample"`.
        inverse: gives x, alone or as the first of a tuple; by default `function.inverse`.
        maps: whether maps (B, C, H, W) are what it takes. By default it takes locations as rows (N, C), with a log_det
            (N,), where the event is the location; and maps, with a log_det (B,), where it is the sample. With
            `maps=True` and the event `"location"` the log_det must be (B, H, W).

    Raises:
        ConfigError: it cannot be called, has no inverse, or the event is not declared.

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
            raise ConfigError(f"flow must be callable and give (z, log_det), but got {describe(function)}")
        inverse = getattr(function, "inverse", None) if inverse is None else inverse
        if not callable(inverse):
            raise ConfigError(
                f"flow must have a method inverse, but {describe(function)} has none: give it, "
                "CallableFlow(function, event, inverse=...)"
            )
        event = check_event(event, "a callable")
        if event == "sample" and maps is False:
            raise ConfigError("maps must be True where event is 'sample', since rows are locations, but got False")
        layout: Layout = "maps" if maps or event == "sample" else "rows"
        super().__init__(event, layout, declared=True)
        self.function, self.back = function, inverse
        owners = [getattr(f, "__self__", None) for f in (function, inverse)]
        self.owners = nn.ModuleList(owner for owner in owners if isinstance(owner, nn.Module) and owner is not function)

    def encode(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """The function."""
        result = self.function(x) if context is None else self.function(x, context)
        if not isinstance(result, tuple) or len(result) != 2:
            raise ShapeError(f"{self.called} must give the tensors (z, log_det), but it gave {type(result).__name__}")
        return result

    def decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        """The inverse function."""
        x: Any = self.back(z) if context is None else self.back(z, context)
        given: Tensor = x[0] if isinstance(x, tuple) else x
        return given

    def _hint(self) -> str:
        if self.event == "sample":
            return f"{super()._hint()}; and so it is where log_det is (B, H, W), with maps=True"
        if self.layout == "maps":
            return "; if it gives one log_det a map, its event is 'sample'; if it maps vectors (C,), leave maps out"
        return f"{super()._hint()}, or 'location' with maps=True where log_det is (B, H, W)"

    @property
    def called(self) -> str:
        """The function in messages."""
        return getattr(self.function, "__qualname__", type(self.function).__qualname__)
