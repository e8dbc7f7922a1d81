"""Transforms of torch.distributions, and so of Pyro, behind this library's interface."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn

from semflow.errors import ConfigError
from semflow.flows import Event

from .foreign import ForeignFlow, check_event, come_from, describe
from .transform_steps import Step, event_dim, forget, is_conditional, is_transform, learned, run, steps_of

__all__ = ["Direction", "TransformFlow"]

Direction = Literal["z_to_x", "x_to_z"]
"""What a transform maps to what: noise to data as in a TransformedDistribution, or data to noise."""


class TransformFlow(ForeignFlow):
    """z = T^-1(x), log_det = -log |dT/dz| of transforms as a `TransformedDistribution` takes them, from noise to data.

    The event is known from their `event_dim`: `"location"` for 0 and 1, elementwise and of vectors (C,), `"sample"` for
    3, of maps (C, H, W). Transforms that Pyro conditions on a context are conditioned on that of each location.

    Transforms that are modules (Pyro's) and parameters that a transform was made with
    (`AffineTransform(nn.Parameter(...), ...)`) are registered. Other tensors in a transform stay where they are, on
    their device, and are not saved.

    Args:
        transform: a `Transform` (a `ComposeTransform`, say), a list of them, first to last from noise to data, or a
            `TransformedDistribution`, whose base is left out.
        event: need not be declared.
        direction: `"z_to_x"` as above, or `"x_to_z"` where the transform is meant to map data to noise. By default the
            first, and the second for transforms of zuko, whose flows are built that way.

    Raises:
        ConfigError: it is another thing, is not invertible, or another event is declared than it has.

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
                raise ConfigError(f"transform must be of torch.distributions' Transform, but got {describe(part)}")
            if not getattr(part, "bijective", True):
                raise ConfigError(f"transform must be bijective, so that it has a log-det, but {part} is not")
        dims = max(event_dim(part) for part in parts)
        if dims not in (0, 1, 3):
            raise ConfigError(
                f"transform must be of event_dim 0 or 1, vectors (C,), or 3, maps (C, H, W), but it is of {dims}"
            )
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
        """Back through the transforms, or forth where they go from x to z."""
        return run(self._given(context, self.direction == "z_to_x"), x)

    def decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        """The other way."""
        return run(self._given(context, self.direction == "x_to_z"), z)[0]

    def _call(self, *arguments: Any) -> Any:
        try:
            return super()._call(*arguments)
        finally:
            forget(self.steps)

    def _given(self, context: Tensor | None, backwards: bool) -> list[Step]:
        """The steps with their context, in the order in which x or z goes through them."""
        given = []
        for step in self.steps:
            if is_conditional(step.transform) and context is not None:
                given += steps_of(step.transform.condition(context), step.inverted)
            else:
                given.append(step)
        return [Step(s.transform, not s.inverted) for s in reversed(given)] if backwards else given

    def _cause(self, x: Tensor, context: Tensor | None) -> str:
        maps = [n for n, p in self.named_parameters() if p.dim() > 2] if self.layout == "rows" else []
        if maps:
            return f"; {maps[0]} is of maps, but at event_dim 0 and 1 locations are rows: make it (C,)"
        return super()._cause(x, context)

    def _other_way(self) -> str:
        other = "x_to_z" if self.direction == "z_to_x" else "z_to_x"
        return f"; TransformFlow(transform, direction={other!r}) has the likelihood of the other direction"

    @property
    def called(self) -> str:
        """The transforms in messages."""
        return " and ".join(dict.fromkeys(type(step.transform).__name__ for step in self.steps))

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{self.direction}, event={self.event}"


def is_distribution(value: object) -> bool:
    """Whether it is a TransformedDistribution, also one that Pyro conditions."""
    return hasattr(value, "base_dist") and hasattr(value, "transforms")


def _direction(transforms: Sequence[object], direction: Direction | None) -> Direction:
    """As declared, or as the library has it that the transforms are of."""
    if direction is not None and direction not in get_args(Direction):
        raise ConfigError(f"direction must be z_to_x or x_to_z, but got {direction!r}")
    of_zuko = {come_from(transform, "zuko") for transform in transforms}
    if direction is None and len(of_zuko) > 1:
        raise ConfigError(
            "direction must be declared where transforms of zuko (data to noise) stand beside others (noise to data): "
            "TransformFlow(transform, direction='x_to_z') or 'z_to_x'"
        )
    return direction or ("x_to_z" if True in of_zuko else "z_to_x")
