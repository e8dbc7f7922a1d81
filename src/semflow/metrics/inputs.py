"""What the metrics accept: tensors or arrays in, checked numpy arrays out."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from semflow.errors import ShapeError

__all__ = ["Array", "Maps", "Values", "as_flags", "as_maps", "as_scores", "check_same_shape"]

Array: TypeAlias = npt.NDArray[Any]
Values: TypeAlias = torch.Tensor | npt.ArrayLike
Maps: TypeAlias = Values | Sequence[Values]

_EXACT_IN_NUMPY = (torch.float32, torch.float64)


def as_array(name: str, value: Values) -> Array:
    """The values as a numpy array on the CPU, in a type that numpy sorts fast and that changes no value."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        if value.is_floating_point() and value.dtype not in _EXACT_IN_NUMPY:
            value = value.float()
        array: Array = value.numpy()
    else:
        try:
            array = np.asarray(value)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ShapeError(f"{name}: expected a tensor or an array of numbers, got {_kind(value)}; {error}") from None
    if array.dtype.kind not in "biuf":
        raise ShapeError(f"{name}: expected real numbers, got {_kind(value)} of {array.dtype}; convert it to float")
    return array.astype(np.float32) if array.dtype == np.float16 else array


def as_scores(name: str, value: Values) -> Array:
    """Scores of any shape; infinities have a rank, NaN has none and is refused."""
    scores = as_array(name, value)
    # The minimum is NaN as soon as one score is, and needs no temporary array.
    if scores.dtype.kind == "f" and scores.size and np.isnan(np.min(scores)):
        count = int(np.isnan(scores).sum())
        raise ShapeError(f"{name}: expected numbers, got {count} NaN in {scores.size}; find the step that made them")
    return scores


def as_flags(name: str, value: Values) -> Array:
    """Labels or masks of any shape as booleans, True where anomalous; only 0 and 1 are accepted."""
    flags = as_array(name, value)
    if flags.dtype == np.bool_:
        return flags
    other = flags[(flags != 0) & (flags != 1)]
    if other.size:
        raise ShapeError(
            f"{name}: expected only 0 (normal) and 1 (anomalous), got {other.flat[0]}; "
            "leave out unknown entries, and write `mask > 0` for a mask of 0 and 255"
        )
    return flags.astype(np.bool_)


def as_maps(name: str, value: Maps) -> dict[str, Array]:
    """A stack (B, H, W), one map (H, W), or a list of maps of any sizes, as maps by the name an error gives them."""
    if isinstance(value, list | tuple):
        maps = {f"{name}[{i}]": as_array(f"{name}[{i}]", item) for i, item in enumerate(value)}
    else:
        array = as_array(name, value)  # type: ignore[arg-type]  # a Sequence that is no list is an array-like
        maps = {f"{name}[{i}]": item for i, item in enumerate(array)} if array.ndim == 3 else {name: array}
    for its_name, item in maps.items():
        if item.ndim != 2:
            shape = tuple(item.shape)
            raise ShapeError(
                f"{its_name}: expected (B, H, W), one (H, W) or a list of (H, W), got {shape}; drop the other axes"
            )
    return maps


def check_same_shape(first: str, a: Array, second: str, b: Array) -> None:
    """Refuse two arrays of different shapes: flattening would pair the wrong entries silently."""
    if a.shape != b.shape:
        raise ShapeError(f"{first} and {second}: expected one shape for both, got {a.shape} and {b.shape}")


def _kind(value: object) -> str:
    return type(value).__name__
