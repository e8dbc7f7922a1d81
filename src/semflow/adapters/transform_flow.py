"""Adapter for transforms of torch.distributions and Pyro."""

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor, nn
from torch.distributions import Transform
from torch.distributions.transforms import ComposeTransform, IndependentTransform, _InverseTransform

from semflow.errors import ConfigError, ShapeError
from semflow.flows import Event

from .foreign import ForeignFlow, check_event, comes_from, describe
from .held import held_by

Direction = Literal["z_to_x", "x_to_z"]
"""Direction of a transform: noise to data, as in a TransformedDistribution, or data to noise."""

_turn = threading.RLock()


class TransformFlow(ForeignFlow):
    """Flow of the transforms T of a `TransformedDistribution`: z = T^-1(x), log_det = -log |dT/dz|.

    The event follows from `event_dim`: `"location"` for 0 (elementwise) and 1 (vectors (C,)), `"sample"` for 3 (maps
    (C, H, W)). Conditional transforms of Pyro are conditioned on the context.

    Modules and tensors in the transforms are registered, so they train, move and are saved with the flow: tensors that
    require gradients as parameters, others as buffers.

    Args:
        transform: a `Transform`, a list of them, first to last from noise to data, or a `TransformedDistribution`,
            whose base is left out.
        event: can be left out.
        direction: `"z_to_x"`, or `"x_to_z"` if the transform maps data to noise. By default `"x_to_z"` for transforms
            of zuko, whose flows are built that way, and `"z_to_x"` for all others.

    Example:
        >>> import torch
        >>> from torch.distributions.transforms import AffineTransform
        >>> flow = TransformFlow(AffineTransform(loc=1.0, scale=torch.full((6,), 2.0, requires_grad=True)))
        >>> [name for name, _ in flow.named_parameters()], flow(torch.ones(2, 6, 3, 4))[1].shape
        (['scale_0'], torch.Size([2, 3, 4]))
    """

    def __init__(self, transform: Any, event: Event | None = None, direction: Direction | None = None) -> None:
        given = transform.transforms if is_distribution(transform) else transform
        parts = list(given) if isinstance(given, Sequence | nn.ModuleList) and not is_transform(given) else [given]
        if not parts:
            raise ConfigError("transform must hold at least one transform, but got an empty list")
        for part in parts:
            if not is_transform(part):
                raise ConfigError(f"transform must be a Transform of torch.distributions, but got {describe(part)}")
            if not getattr(part, "bijective", True):
                raise ConfigError(f"transform must be bijective, but got {part}")
        dims = max(event_dim(part) for part in parts)
        if dims not in (0, 1, 3):
            raise ConfigError(f"transform must have event_dim 0, 1 or 3 (maps (C, H, W)), but got {dims}")
        known: Event = "sample" if dims == 3 else "location"
        event = check_event(event, f"transforms of event_dim {dims}", known)
        steps = [step for part in parts for step in steps_of(part)]
        label = " and ".join(dict.fromkeys(type(step.transform).__name__ for step in steps))
        super().__init__(event, "maps" if dims == 3 else "rows", label)
        self.steps = steps
        self.direction = _direction([step.transform for step in steps], direction)
        other = "x_to_z" if self.direction == "z_to_x" else "z_to_x"
        self.inverse_hint = f"; for the likelihood of the other direction call TransformFlow(t, direction={other!r})"
        self.hold(held_by(*(step.transform for step in steps)))

    def _encode(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | float]:
        return self._run(x, context, invert=self.direction == "z_to_x")

    def _decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        return self._run(z, context, invert=self.direction == "x_to_z")[0]

    def _failure_hint(self, x: Tensor, context: Tensor | None) -> str:
        maps = [name for name, p in self.named_parameters() if p.dim() > 2] if self.layout == "rows" else []
        if maps:
            return f"; {maps[0]} has the shape of a map, but a transform of event_dim 0 or 1 maps rows: make it (C,)"
        return super()._failure_hint(x, context)

    def extra_repr(self) -> str:
        """Return the direction and the event for `repr`."""
        return f"{self.direction}, event={self.event}"

    def _run(self, x: Tensor, context: Tensor | None, invert: bool) -> tuple[Tensor, Tensor]:
        """Apply the steps or their inverses; return the result y and log |dy/dx| of each element of the batch, (N,)."""
        steps: list[Step] = []
        for step in self.steps:
            if is_conditional(step.transform) and context is not None:
                steps += steps_of(step.transform.condition(context), step.inverted)
            else:
                steps.append(step)
        if invert:
            steps = [Step(transform, not inverted) for transform, inverted in reversed(steps)]
        total = x.new_zeros(x.shape[0])
        with _turn if any(_cached(transform) for transform, _ in self.steps) else nullcontext():
            return self._apply_steps(steps, x, total)

    def _apply_steps(self, steps: "Sequence[Step]", x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        try:
            for transform, inverted in steps:
                if not isinstance(transform, Transform):
                    kind = type(transform).__name__
                    raise ShapeError(f"context must be given to the conditional {kind}, but got None")
                batch = x.shape[: x.dim() - transform.domain.event_dim]
                y = transform.inv(x) if inverted else transform(x)
                log_det = -transform.log_abs_det_jacobian(y, x) if inverted else transform.log_abs_det_jacobian(x, y)
                # The log-det has one value per event, and may be broadcast: bring it to the batch shape, then sum.
                total = total + log_det.expand(batch).reshape(x.shape[0], -1).sum(1)
                x = y
        finally:
            clear_cache(self.steps)
        return x, total


def is_distribution(value: object) -> bool:
    """Return whether a value is a TransformedDistribution, conditional ones of Pyro included."""
    return hasattr(value, "base_dist") and hasattr(value, "transforms")


def _direction(transforms: Sequence[object], direction: Direction | None) -> Direction:
    """Return the declared direction, or the default of the library that the transforms come from."""
    if direction is not None:
        if direction not in get_args(Direction):
            raise ConfigError(f"direction must be z_to_x or x_to_z, but got {direction!r}")
        return direction
    of_zuko = {comes_from(transform, "zuko") for transform in transforms}
    if len(of_zuko) > 1:
        raise ConfigError(
            "direction must be declared for a mix of transforms of zuko (data to noise) and others (noise to data), "
            "but got None; call TransformFlow(transform, direction='x_to_z') or 'z_to_x'"
        )
    return "x_to_z" if True in of_zuko else "z_to_x"


class Step(NamedTuple):
    """A transform and whether its inverse is meant; torch's `transform.inv` does not survive copying or pickling."""

    transform: Any
    inverted: bool


def steps_of(transform: Any, inverted: bool = False) -> list[Step]:
    """Split compositions and inverses into steps."""
    if isinstance(transform, _InverseTransform):
        return steps_of(transform.inv, not inverted)
    if isinstance(transform, ComposeTransform):
        parts = reversed(transform.parts) if inverted else transform.parts
        return [step for part in parts for step in steps_of(part, inverted)]
    if isinstance(transform, IndependentTransform):
        return steps_of(transform.base_transform, inverted)
    # Pyro wraps unconditional transforms in this class if they stand beside conditional ones.
    if type(transform).__name__ == "ConstantConditionalTransform" and comes_from(transform, "pyro"):
        return [Step(getattr(transform, "transform", transform), inverted)]
    return [Step(transform, inverted)]


def event_dim(transform: Any) -> int:
    """Return the event dimensions of a transform: 0 for numbers, 1 for vectors; Pyro's wrappers have no `domain`."""
    if hasattr(transform, "domain"):
        return max(int(transform.domain.event_dim), int(transform.codomain.event_dim))
    inner = [getattr(transform, name) for name in ("transforms", "transform", "_transform") if hasattr(transform, name)]
    parts = [part for value in inner for part in (value if isinstance(value, list | tuple) else [value])]
    return max((event_dim(part) for part in parts), default=0)


def clear_cache(steps: Sequence[Step]) -> None:
    """Drop cached results, which would keep the last batch's graph alive and make the flow impossible to copy."""
    for transform, _ in steps:
        for name in _cached(transform):
            setattr(transform, name, (None, None) if name == "_cached_x_y" else None)


def _cached(transform: object) -> list[str]:
    """Return the names of what a transform remembers of its last call, which threads would mix up."""
    return [name for name in vars(transform) if name.startswith("_cached")]


def is_transform(value: object) -> bool:
    """Return whether a value is a transform, or becomes one when conditioned on a context."""
    return isinstance(value, Transform) or is_conditional(value)


def is_conditional(value: object) -> bool:
    """Return whether a value is a conditional transform of Pyro."""
    return comes_from(value, "pyro") and callable(getattr(value, "condition", None))
