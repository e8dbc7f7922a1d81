"""Base class of all adapters: tensor layouts of other libraries, and error messages that name a wrong event."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Self, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from semflow.errors import ConfigError, ShapeError
from semflow.flows import Event, Flow
from semflow.flows.base import Result
from semflow.functional import from_locations, to_locations
from semflow.functional.inverse_gamma import narrow
from semflow.nn import Context, PositionTables

from .held import Held, contains, leaves, parts_beside, plain_name

Layout = Literal["rows", "last", "maps"]
"""Layout of a map in a library: locations as rows (B H W, C), channels last (B, H, W, C), or unchanged (B, C, H, W)."""

Output = TypeVar("Output")


class OneWayError(ConfigError, NotImplementedError):
    """A flow that cannot be inverted; also a NotImplementedError, which is what the libraries raise."""


class ForeignFlow(Flow):
    """Base class of flows of other libraries.

    A subclass defines `_encode` and `_decode` in the library's own `layout`, and its `label` in error messages. This
    class converts maps and contexts, checks the shapes of the results, and disables autocast: libraries add up log-dets
    in the precision of their layers. The event may be wrong if the user `declared` it.
    """

    inverse_hint = ""  # end of the error for a missing inverse

    def __init__(self, event: Event, layout: Layout, label: str, declared: bool = False) -> None:
        super().__init__()
        self.event, self.layout, self.label, self.declared = event, layout, label, declared
        self.held: dict[str, Tensor] = {}
        self.learned = nn.ModuleList()
        self._complete = False

    def hold(self, found: Iterable[Held]) -> None:
        """Register modules and tensors that the flow uses: trainable tensors as parameters, others as buffers.

        A tensor stays the same object wherever the library or the user refers to it: a trainable one becomes an
        `nn.Parameter` in place, and `to` and `load_state_dict` change values in place.
        """
        known = {id(t) for t in (*self.parameters(), *self.buffers())} | {id(m) for m in self.modules()}
        for name, value in found:
            if id(value) in known:
                continue
            known.add(id(value))
            if isinstance(value, nn.Module):
                self.learned.append(value)
                continue
            name = plain_name(name)
            name = f"{name}_{sum(held.rpartition('_')[0] == name for held in self.held)}"
            self.held[name] = value
            if isinstance(value, nn.Parameter) or value.requires_grad:
                if not isinstance(value, nn.Parameter):
                    value.__class__ = nn.Parameter
                self.register_parameter(name, cast(nn.Parameter, value))
            else:
                if value._is_view():  # may overlap itself, and then could not be loaded
                    value.data = value.data.clone()
                self.register_buffer(name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._complete = False  # functions of a copy still refer to the tensors of the original

    def _unwind(self) -> None:
        """Hold the parts of a module that has become a parent, such as `self` in a closure, in its place."""
        parents = [module for module in self.learned if contains(module, self)]
        if parents:
            self.learned = nn.ModuleList(module for module in self.learned if module not in parents)
            self.hold(part for module in parents for part in parts_beside(module, self))

    # All that visits children calls one of these first, and would never end in a cycle.

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the flow and of the modules that it uses."""
        self._unwind()
        return super().train(mode)

    def apply(self, fn: Callable[[nn.Module], None]) -> Self:
        """Apply a function to the flow and to the modules that it uses."""
        self._unwind()
        return super().apply(fn)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the tensors of the flow and of the modules that it uses."""
        self._unwind()
        return super().state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._unwind()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._keep_held()
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any) -> None:
        self._unwind()
        super()._load_from_state_dict(state_dict, *args)
        self._keep_held()  # with assign=True they are others now

    def _keep_held(self) -> None:
        """Give the held tensors the data of what was registered in their place, and register them again."""
        for name, value in self.held.items():
            registered: dict[str, Any] = self._parameters if name in self._parameters else self._buffers
            now = registered[name]
            if now is not value and now.is_meta == value.is_meta:  # a tensor without values stays until `to_empty`
                value.data = now.data
                registered[name] = value

    def _encode(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """Return (z, log_det) of x; everything is in the library's layout."""
        raise TypeError(f"{type(self).__name__} must define _encode(x, context), but got a class without it")

    def _decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        """Return the x of z; everything is in the library's layout."""
        raise TypeError(f"{type(self).__name__} must define _decode(z, context), but got a class without it")

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """Map features (B, C, H, W) to latents; the context is position tables or a map (D, H, W) or (B, D, H, W)."""
        z, log_det = self._call(self._encode, x, context)
        if not self._complete and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._check_complete(z, log_det, x, context)
        # Some flows with a constant log-det return a plain number.
        log_det = narrow(torch.as_tensor(log_det, dtype=getattr(log_det, "dtype", z.dtype), device=z.device))
        shape = (x.shape[0],) if self.event == "sample" else (x.shape[0], *x.shape[2:])
        expected = (x[:, 0].numel(),) if self.layout == "rows" else shape
        if log_det.dim() and log_det.shape != expected:
            raise ShapeError(
                f"log_det must be {expected} if event is {self.event!r}, but got {tuple(log_det.shape)} from "
                f"{self.label}{self._event_hint()}"
            )
        return self._from_layout(z, x, "z"), log_det.expand(expected).view(shape)

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """Map latents (B, C, H, W) back to features."""
        return self._from_layout(self._call(self._decode, z, context), z, "x")

    def _check_complete(self, z: Tensor, log_det: Tensor | float, x: Tensor, context: Context) -> None:
        """Warn once of trainable tensors that were not found."""
        self._complete = True
        of_context = (context.column, context.row) if isinstance(context, PositionTables) else (context,)
        given = [t for t in (x, *of_context) if isinstance(t, Tensor)]
        results = [t for t in (z, log_det) if isinstance(t, Tensor)]
        known = {id(p) for p in self.parameters()}
        missing = [str(tuple(t.shape)) for t in leaves(*results, beyond=given) if id(t) not in known]
        if missing:
            warnings.warn(
                f"{self.label} trains tensors that cannot be found in it, of shape {', '.join(missing)}: they are "
                "neither in model.parameters() nor saved nor moved; pass them, as_flow(flow, parameters=[...])",
                stacklevel=3,
            )

    def _check_input(self, x: Tensor, context: Context) -> Context:
        """Raise ShapeError unless x is (B, C, H, W); return the context that `_encode` and `_decode` receive."""
        if x.dim() != 4:
            raise ShapeError(f"x must be (B, C, H, W), but got {tuple(x.shape)}")
        return context

    def _event_hint(self) -> str:
        """Return the end of an error that a wrongly declared event may have caused."""
        if not self.declared:
            return ""
        if self.event == "location":
            return "; if it maps (C, H, W), its event is 'sample'"
        return "; if it maps vectors (C,), one per location, its event is 'location'"

    def _failure_hint(self, x: Tensor, context: Tensor | None) -> str:
        """Return the end of the error for a call that failed: how x or the context may differ from what is expected."""
        own = [p for p in (*self.parameters(), *self.held.values()) if p.is_floating_point()]
        for name in ("device", "dtype"):
            theirs = sorted({str(getattr(p, name)) for p in own})
            if theirs and str(getattr(x, name)) not in theirs:
                return f"; x has {name} {getattr(x, name)}, its parameters have {', '.join(theirs)}: use one for both"
        width = 0 if context is None else context.shape[-1 if self.layout != "maps" else 1]
        return f"; make it for {x.shape[1]} channels and {width} context channels{self._event_hint()}"

    def extra_repr(self) -> str:
        """Return the event for `repr`."""
        self._unwind()
        return f"event={self.event}"

    def _call(self, function: Callable[[Tensor, Tensor | None], Output], x: Tensor, context: Context) -> Output:
        """Call encode or decode in the library's layout without autocast, and translate the library's errors."""
        dense = self._dense_context(x, self._check_input(x, context))
        if torch.is_autocast_enabled(x.device.type):
            x, dense = narrow(x), None if dense is None else narrow(dense)
        given = self._to_layout(x)
        try:
            with torch.autocast(x.device.type, enabled=False):
                return function(given, dense)
        except (torch.OutOfMemoryError, ConfigError, ShapeError):
            raise
        except (NotImplementedError, KeyError) as error:  # Pyro raises KeyError for an x that is not in its cache
            way = "x to z" if function == self._encode else "z to x"
            raise OneWayError(
                f"{self.label} must map {way}, but got {type(error).__name__}: {first_line(error)}{self.inverse_hint}"
            ) from error
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise ShapeError(
                f"{self.label} must take {tuple(given.shape)} if event is {self.event!r}, but got "
                f"{type(error).__name__}: {first_line(error)}{self._failure_hint(x, dense)}"
            ) from error

    def _to_layout(self, x: Tensor) -> Tensor:
        if self.layout == "rows":
            return to_locations(x)
        return x.movedim(1, -1).contiguous() if self.layout == "last" else x

    def _from_layout(self, y: Tensor, x: Tensor, name: str) -> Tensor:
        expected = self._to_layout(x).shape
        if y.shape != expected:
            raise ShapeError(
                f"{name} must be {tuple(expected)}, the shape of the input, if event is {self.event!r}, but got "
                f"{tuple(y.shape)} from {self.label}{self._event_hint()}"
            )
        if self.layout == "rows":
            return from_locations(y, (x.shape[2], x.shape[3]))
        return y.movedim(-1, 1) if self.layout == "last" else y

    def _dense_context(self, x: Tensor, context: Context) -> Tensor | None:
        """Return the context in the library's layout and in the dtype of x."""
        if context is None:
            return None
        dense = context.dense() if isinstance(context, PositionTables) else context
        batch, _, height, width = x.shape
        fits = dense.dim() == 3 or (dense.dim() == 4 and dense.shape[0] in (1, batch))
        if not fits or dense.shape[-2:] != (height, width):
            raise ShapeError(
                f"context must be (D, {height}, {width}) or (B, D, {height}, {width}) with B = {batch}, "
                f"but got {tuple(dense.shape)}"
            )
        dense = dense.to(x)
        if self.layout == "last":  # broadcasts over the batch, so that the library computes on a shared context once
            return (dense[0] if dense.dim() == 4 and dense.shape[0] == 1 else dense).movedim(-3, -1)
        return self._to_layout(dense.expand(batch, -1, -1, -1))


def check_event(event: object, kind: str, known: Event | None = None) -> Event:
    """Return the declared or `known` event of a flow; `kind` describes the flow in error messages."""
    if known is not None:
        if event not in (None, known):
            raise ConfigError(f"event must be {known!r} for {kind}, but got {event!r}; leave it out")
        return known
    if event in get_args(Event):
        return cast(Event, event)
    raise ConfigError(
        f"event must be 'location' or 'sample' for {kind}, but got {event!r}; declare 'location' if it maps vectors "
        "(C,), one per location, or 'sample' if it maps (C, H, W), as in as_flow(flow, event='location')"
    )


def comes_from(value: object, package: str) -> bool:
    """Return whether a value's class or one of its bases is defined in a package, without importing the package."""
    return any(kind.__module__.partition(".")[0] == package for kind in type(value).__mro__)


def describe(value: Any) -> str:
    """Return a value's class with its module."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else "no message"
