"""Adapter for transforms of torch.distributions and Pyro."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn

from semflow.errors import ConfigError
from semflow.flows import Event

from .foreign import ForeignFlow, check_event, comes_from, describe
from .transform_steps import Step, clear_cache, event_dim, is_conditional, is_transform, learned, run, steps_of

__all__ = ["Direction", "TransformFlow", "is_distribution"]

Direction = Literal["z_to_x", "x_to_z"]
"""Direction of a transform: noise to data, as in a TransformedDistribution, or data to noise."""


class TransformFlow(ForeignFlow):
    """Flow of the transforms T of a `TransformedDistribution`: z = T^-1(x), log_det = -log |dT/dz|.

    The event follows from `event_dim`: `"location"` for 0 (elementwise) and 1 (vectors (C,)), `"sample"` for 3 (maps
    (C, H, W)). Conditional transforms of Pyro are conditioned on the context.

    Transforms that are modules (Pyro's) and parameters of a transform (`AffineTransform(nn.Parameter(...), ...)`) are
    registered. Other tensors in a transform are not moved between devices and not saved.

    Args:
        transform: a `Transform`, a list of them, first to last from noise to data, or a `TransformedDistribution`,
            whose base is left out.
        event: can be left out.
        direction: `"z_to_x"`, or `"x_to_z"` if the transform maps data to noise. By default `"x_to_z"` for transforms
            of zuko, whose flows are built that way, and `"z_to_x"` for all others.

    Raises:
        ConfigError: `transform` is something else or not invertible, or the declared event is wrong.

    Example:
        >>> import torch
        >>> from torch.distributions.transforms import AffineTransform
        >>> flow = TransformFlow(AffineTransform(loc=1.0, scale=nn.Parameter(torch.full((6,), 2.0))))
        >>> z, log_det = flow(torch.ones(2, 6, 3, 4))
        >>> z.abs().max().item(), log_det.shape, len(list(flow.parameters()))
        (0.0, torch.Size([2, 3, 4]), 1)
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
        super().__init__(check_event(event, f"transforms of event_dim {dims}", known), "maps" if dims == 3 else "rows")
        self.steps = [step for part in parts for step in steps_of(part)]
        self.direction = _direction([step.transform for step in self.steps], direction)
        self.learned = nn.ModuleList()
        for number, (name, value) in enumerate(pair for step in self.steps for pair in learned(step.transform)):
            if isinstance(value, nn.Module):
                self.learned.append(value)
            else:
                self.register_parameter(f"{name}_{number}", value)

    def encode(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """Map x to z."""
        return self._run(x, context, invert=self.direction == "z_to_x")

    def decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        """Map z to x."""
        return self._run(z, context, invert=self.direction == "x_to_z")[0]

    @property
    def inverse_hint(self) -> str:
        """Direction in which a transform without an inverse has a likelihood."""
        other = "x_to_z" if self.direction == "z_to_x" else "z_to_x"
        return f"; TransformFlow(transform, direction={other!r}) evaluates the likelihood of the other direction"

    def failure_hint(self, x: Tensor, context: Tensor | None) -> str:
        """Return the parameter that has the shape of a map though the flow maps vectors, or the general hint."""
        maps = [name for name, p in self.named_parameters() if p.dim() > 2] if self.layout == "rows" else []
        if maps:
            return f"; {maps[0]} has the shape of a map, but a transform of event_dim 0 or 1 maps rows: make it (C,)"
        return super().failure_hint(x, context)

    @property
    def label(self) -> str:
        """Names of the transforms in error messages."""
        return " and ".join(dict.fromkeys(type(step.transform).__name__ for step in self.steps))

    def extra_repr(self) -> str:
        """Return the direction and the event for `repr`."""
        return f"{self.direction}, event={self.event}"

    def _run(self, x: Tensor, context: Tensor | None, invert: bool) -> tuple[Tensor, Tensor]:
        steps: list[Step] = []
        for step in self.steps:
            if is_conditional(step.transform) and context is not None:
                steps += steps_of(step.transform.condition(context), step.inverted)
            else:
                steps.append(step)
        if invert:
            steps = [Step(transform, not inverted) for transform, inverted in reversed(steps)]
        try:
            return run(steps, x)
        finally:
            clear_cache(self.steps)


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
