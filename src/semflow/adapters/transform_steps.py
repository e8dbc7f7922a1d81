"""Compositions and inverses of torch's transforms as a list of steps, and the parameters in them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.distributions import Transform
from torch.distributions.transforms import ComposeTransform, IndependentTransform, _InverseTransform

from semflow.errors import ShapeError

from .foreign import comes_from

__all__ = ["Step", "clear_cache", "event_dim", "is_conditional", "is_transform", "learned", "run", "steps_of"]


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


def run(steps: Sequence[Step], x: Tensor) -> tuple[Tensor, Tensor]:
    """Apply all steps.

    Returns:
        The result y, and log |dy/dx| for each element of the batch, (N,).

    Raises:
        ShapeError: a step needs a context and got none.
    """
    total = x.new_zeros(x.shape[0])
    for transform, inverted in steps:
        if not isinstance(transform, Transform):
            raise ShapeError(f"context must be given to the conditional {type(transform).__name__}, but got None")
        dims = transform.domain.event_dim
        y = transform.inv(x) if inverted else transform(x)
        log_det = -transform.log_abs_det_jacobian(y, x) if inverted else transform.log_abs_det_jacobian(x, y)
        # The log-det has one value per event, and may be broadcast: bring it to the batch shape, then sum per element.
        total = total + log_det.expand(x.shape[: x.dim() - dims]).reshape(x.shape[0], -1).sum(1)
        x = y
    return x, total


def learned(value: Any, name: str = "value") -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """Yield the modules and parameters inside a transform with their names."""
    if isinstance(value, nn.Module | nn.Parameter):
        yield name, value
    elif isinstance(value, _InverseTransform):
        yield from learned(value.inv, name)
    elif isinstance(value, Transform):
        for key, inner in vars(value).items():
            if key != "_inv":
                yield from learned(inner, key)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from learned(inner, name)


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
        for name in [name for name in vars(transform) if name.startswith("_cached")]:
            setattr(transform, name, (None, None) if name == "_cached_x_y" else None)


def is_transform(value: object) -> bool:
    """Return whether a value is a transform, or becomes one when conditioned on a context."""
    return isinstance(value, Transform) or is_conditional(value)


def is_conditional(value: object) -> bool:
    """Return whether a value is a conditional transform of Pyro."""
    return comes_from(value, "pyro") and callable(getattr(value, "condition", None))
