"""What the adapters share: the layouts of other libraries, and complaints that name a wrong event."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from semflow._optional import import_optional
from semflow.errors import ConfigError, ShapeError
from semflow.flows import Event, Flow
from semflow.flows.base import Result
from semflow.functional import from_locations, to_locations
from semflow.functional.inverse_gamma import narrow
from semflow.nn import Context, PositionTables

__all__ = ["ForeignFlow", "Layout", "check_event", "come_from", "describe", "library"]

Layout = Literal["rows", "last", "maps"]
"""How a library has a map: locations as rows (B H W, C), channels last (B, H, W, C), or as it is (B, C, H, W)."""

Made = TypeVar("Made")


class OneWayError(ConfigError, NotImplementedError):
    """A flow has no inverse, or none that it could give here; also what the libraries raise for it."""


class ForeignFlow(Flow):
    """A flow of another library behind the interface of this one's.

    A subclass defines `encode` and `decode` in the library's own layout. This class brings maps there and back, the
    context too; keeps autocast away, since libraries add up log-dets in the precision of their layers; and holds what
    comes back against the declared event.

    Args:
        event: `"location"` or `"sample"`.
        layout: what `encode` takes.
        declared: whether the user said what the event is, and may be wrong; otherwise it is known.
    """

    def __init__(self, event: Event, layout: Layout, declared: bool = False) -> None:
        super().__init__()
        self.event = event
        self.layout: Layout = layout
        self.declared = declared

    def encode(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """(z, log_det) in the library's layout; the context is in that layout, or None."""
        raise TypeError(f"{type(self).__name__} must define encode(x, context), which gives (z, log_det)")

    def decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        """The x of a z, in the library's layout."""
        raise TypeError(f"{type(self).__name__} must define decode(z, context)")

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """(B, C, H, W) to z of that shape and log_det (B, H, W), or (B,) where the event is the sample.

        Raises:
            ShapeError: the library's flow does not take the layout of the declared event, or does not give its shapes.
        """
        z, log_det = self._call(self.encode, x, context)
        # Flows that keep the volume, or change it by a constant, may give a plain number.
        log_det = narrow(torch.as_tensor(log_det, dtype=getattr(log_det, "dtype", z.dtype), device=z.device))
        shape = (x.shape[0],) if self.event == "sample" else (x.shape[0], *x.shape[2:])
        came = (x[:, 0].numel(),) if self.layout == "rows" else shape
        if log_det.dim() and log_det.shape != came:
            raise ShapeError(
                f"log_det must be {came} where event is {self.event!r}, but {self.called} gave "
                f"{tuple(log_det.shape)}{self._hint()}"
            )
        return self._leave(z, x, "z"), log_det.expand(came).view(shape)

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """The x that `forward` maps to z."""
        return self._leave(self._call(self.decode, z, context), z, "x")

    @property
    def called(self) -> str:
        """The library's flow in messages."""
        return type(self).__name__

    def _call(self, function: Callable[[Tensor, Tensor | None], Made], x: Tensor, context: Context) -> Made:
        if x.dim() != 4:
            raise ShapeError(f"x must be (B, C, H, W), but got {tuple(x.shape)}")
        dense = self._context(x, context)
        if torch.is_autocast_enabled(x.device.type):
            x, dense = narrow(x), None if dense is None else narrow(dense)
        given = self._enter(x)
        with torch.autocast(x.device.type, enabled=False):
            try:
                return function(given, dense)
            except (torch.OutOfMemoryError, ConfigError, ShapeError):
                raise
            except (NotImplementedError, KeyError) as error:  # Pyro looks in vain for the z that it has not drawn
                way = "x to z" if function == self.encode else "z to x"
                raise OneWayError(
                    f"{self.called} must map {way}, but it raised {type(error).__name__}: {_first_line(error)}"
                    f"{self._other_way()}"
                ) from error
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
                raise ShapeError(
                    f"{self.called} must take {tuple(given.shape)} where event is {self.event!r}, but it raised "
                    f"{type(error).__name__}: {_first_line(error)}{self._cause(x, dense)}"
                ) from error

    def _enter(self, x: Tensor) -> Tensor:
        if self.layout == "rows":
            return to_locations(x)
        return x.movedim(1, -1).contiguous() if self.layout == "last" else x

    def _leave(self, y: Tensor, x: Tensor, name: str) -> Tensor:
        given = self._enter(x).shape
        if y.shape != given:
            raise ShapeError(
                f"{name} must be {tuple(given)}, as what goes in, where event is {self.event!r}, but {self.called} "
                f"gave {tuple(y.shape)}{self._hint()}"
            )
        if self.layout == "rows":
            return from_locations(y, (x.shape[2], x.shape[3]))
        return y.movedim(-1, 1) if self.layout == "last" else y

    def _context(self, x: Tensor, context: Context) -> Tensor | None:
        """The context in the library's layout, in the dtype of x."""
        if context is None:
            return None
        dense = context.dense() if isinstance(context, PositionTables) else context
        size = tuple(x.shape[2:])
        if (
            dense.dim() not in (3, 4)
            or tuple(dense.shape[-2:]) != size
            or (dense.dim() == 4 and dense.shape[0] not in (1, x.shape[0]))
        ):
            raise ShapeError(
                f"context must be (D, {size[0]}, {size[1]}) or (B, D, {size[0]}, {size[1]}), B = {x.shape[0]}, "
                f"but got {tuple(dense.shape)}"
            )
        dense = dense.to(x)
        # Where channels come last a context of all images broadcasts: what a library makes of it, it makes once.
        if self.layout == "last":
            return (dense[0] if dense.dim() == 4 and dense.shape[0] == 1 else dense).movedim(-3, -1)
        return self._enter(dense.expand(x.shape[0], -1, -1, -1))

    def _hint(self) -> str:
        if not self.declared:
            return ""
        if self.event == "location":
            return "; if it maps (C, H, W), its event is 'sample'"
        return "; if it maps vectors (C,), one a location, its event is 'location'"

    def _cause(self, x: Tensor, context: Tensor | None) -> str:
        """What x is like and the flow is not, or what the flow would have to be made for."""
        own = [p for p in self.parameters() if p.is_floating_point()]
        for name in ("device", "dtype"):
            theirs = sorted({str(getattr(p, name)) for p in own})
            if theirs and str(getattr(x, name)) not in theirs:
                return f"; x is of {name} {getattr(x, name)}, its parameters of {', '.join(theirs)}: use one for both"
        given = "no context" if context is None else f"{context.shape[-1 if self.layout != 'maps' else 1]} of context"
        return f"; it must be made for {x.shape[1]} channels and {given}{self._hint()}"

    def _other_way(self) -> str:
        """What may be done about a missing inverse."""
        return ""

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"event={self.event}"


def check_event(event: object, kind: str, known: Event | None = None) -> Event:
    """The event of a flow: as declared, or as known.

    Args:
        event: declared, or None.
        kind: what errors call the flow.
        known: what a flow of that kind has, if that is known.

    Raises:
        ConfigError: it is declared to be another than it is, or neither declared nor known.
    """
    if event is None and known is not None:
        return known
    if known is not None and event != known:
        raise ConfigError(f"event of {kind} must be {known!r}, but {event!r} is declared; leave it out")
    if event == "location" or event == "sample":
        return "location" if event == "location" else "sample"
    raise ConfigError(
        f"event must be declared for {kind}: 'location' where it maps vectors (C,), one a location, or 'sample' where "
        f"it maps (C, H, W), as_flow(flow, event=...); but got {event!r}"
    )


def come_from(value: object, package: str) -> bool:
    """Whether a value's class, or one that it inherits from, is of that package, which need not be imported."""
    return any(kind.__module__.partition(".")[0] == package for kind in type(value).__mro__)


def library(name: str, extra: str) -> ModuleType:
    """An optional library.

    Raises:
        ConfigError: it cannot be imported; the message names the extra.
    """
    return import_optional(name)


def describe(value: Any) -> str:
    """A value's class with its module."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _first_line(error: Exception) -> str:
    lines = (line.strip().rstrip(".") for line in str(error).splitlines())
    return next((line for line in lines if line), "without a message")
