"""Transforms of torch.distributions taken apart: steps one after the other, and what is learned in them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.distributions import Transform
from torch.distributions.transforms import ComposeTransform, IndependentTransform, _InverseTransform

from semflow.errors import ShapeError

from .foreign import come_from

__all__ = ["Step", "event_dim", "forget", "is_conditional", "is_transform", "learned", "run", "steps_of"]


class Step(NamedTuple):
    """A transform, and whether its inverse is meant.

    Not `transform.inv`: torch's inverse of a transform loses it when it is copied or pickled.
    """

    transform: Any
    inverted: bool


def steps_of(transform: Any, inverted: bool = False) -> list[Step]:
    """The steps of a composition or an inverse; a transform that is neither is one step."""
    if isinstance(transform, _InverseTransform):
        return steps_of(transform.inv, not inverted)
    if isinstance(transform, ComposeTransform):
        parts = reversed(transform.parts) if inverted else transform.parts
        return [step for part in parts for step in steps_of(part, inverted)]
    if isinstance(transform, IndependentTransform):
        return steps_of(transform.base_transform, inverted)  # how log-dets are summed is not the steps' business
    return [Step(getattr(transform, "transform", transform) if _is_constant(transform) else transform, inverted)]


def run(steps: Sequence[Step], x: Tensor) -> tuple[Tensor, Tensor]:
    """Through all steps: the result, and log |d result / d x| for each of the batch, (N,).

    Raises:
        ShapeError: a step wants a context and was given none.
    """
    total = x.new_zeros(x.shape[0])
    for transform, inverted in steps:
        if not isinstance(transform, Transform):
            raise ShapeError(f"context must be given: {type(transform).__name__} is conditional, but got None")
        dims = transform.domain.event_dim
        y = transform.inv(x) if inverted else transform(x)
        log_det = -transform.log_abs_det_jacobian(y, x) if inverted else transform.log_abs_det_jacobian(x, y)
        # A number for each of what the transform takes for a batch: rows, or all elements.
        total = total + log_det.expand(x.shape[: x.dim() - dims]).reshape(x.shape[0], -1).sum(1)
        x = y
    return x, total


def learned(value: Any, name: str = "value") -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """The modules and parameters within a transform, each with the name that it has there."""
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
    """How many dimensions a transform's values have: 0 for numbers, 1 for vectors. Pyro's wrappers do not say."""
    if hasattr(transform, "domain"):
        return max(int(transform.domain.event_dim), int(transform.codomain.event_dim))
    inner = [getattr(transform, name) for name in ("transforms", "transform", "_transform") if hasattr(transform, name)]
    parts = [part for value in inner for part in (value if isinstance(value, list | tuple) else [value])]
    return max((event_dim(part) for part in parts), default=0)


def forget(steps: Sequence[Step]) -> None:
    """Drop what transforms cached: it keeps the last batch's graph alive, and a flow that holds it cannot be copied."""
    for transform, _ in steps:
        for name in [name for name in vars(transform) if name.startswith("_cached")]:
            setattr(transform, name, (None, None) if name == "_cached_x_y" else None)


def is_transform(value: object) -> bool:
    """Whether it is a transform, or becomes one with a context."""
    return isinstance(value, Transform) or is_conditional(value)


def is_conditional(value: object) -> bool:
    """Whether it is what Pyro conditions on a context, to give a transform."""
    return come_from(value, "pyro") and callable(getattr(value, "condition", None))


def _is_constant(value: object) -> bool:
    """Whether it is a transform that Pyro has made conditional, for the sake of those beside it."""
    return type(value).__name__ == "ConstantConditionalTransform" and come_from(value, "pyro")
