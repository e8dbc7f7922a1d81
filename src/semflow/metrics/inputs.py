"""Conversion of the tensors or arrays of a caller to checked NumPy arrays."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from semflow.errors import ShapeError

Array: TypeAlias = npt.NDArray[Any]
Values: TypeAlias = torch.Tensor | npt.ArrayLike
Maps: TypeAlias = Values | Sequence[Values]


def as_array(name: str, value: Values) -> Array:
    """Return the values as a NumPy array on the CPU, in a dtype that NumPy sorts fast and that changes no value."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        if value.is_floating_point() and value.dtype not in (torch.float32, torch.float64):
            value = value.float()
        array: Array = value.numpy()
    else:
        try:
            array = np.asarray(value)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ShapeError(f"{name} must be an array of numbers, but got {type(value).__name__}: {error}") from None
    if array.dtype.kind not in "biuf":
        raise ShapeError(f"{name} must have real numbers, but got {type(value).__name__} of {array.dtype}")
    return array.astype(np.float32) if array.dtype == np.float16 else array


def as_scores(name: str, value: Values) -> Array:
    """Return scores of any shape as an array; infinities are valid, NaN raises ShapeError."""
    scores = as_array(name, value)
    # The minimum is NaN if any score is, and needs no temporary array.
    if scores.dtype.kind == "f" and scores.size and np.isnan(np.min(scores)):
        count = int(np.isnan(scores).sum())
        raise ShapeError(f"{name} must be free of NaN, but got {count} NaN in {scores.size} values")
    return scores


def as_flags(name: str, value: Values) -> Array:
    """Return labels or masks of any shape as booleans; raise ShapeError for values other than 0 and 1."""
    flags = as_array(name, value)
    if flags.dtype == np.bool_:
        return flags
    other = flags[(flags != 0) & (flags != 1)]
    if other.size:
        raise ShapeError(
            f"{name} must have only 0 (normal) and 1 (anomalous), but got {other.flat[0]}; "
            "remove unknown entries, and use `mask > 0` for a mask of 0 and 255"
        )
    return flags.astype(np.bool_)


def as_maps(name: str, value: Maps) -> dict[str, Array]:
    """Return a stack (B, H, W), one map (H, W), or a list of maps of any sizes as maps by their name in errors."""
    if isinstance(value, list | tuple):
        maps = {f"{name}[{i}]": as_array(f"{name}[{i}]", item) for i, item in enumerate(value)}
    else:
        array = as_array(name, value)  # type: ignore[arg-type]  # a Sequence other than a list is an array-like
        maps = {f"{name}[{i}]": item for i, item in enumerate(array)} if array.ndim == 3 else {name: array}
    for its_name, item in maps.items():
        if item.ndim != 2:
            raise ShapeError(f"{its_name} must be (B, H, W), (H, W) or a list of (H, W), but got {tuple(item.shape)}")
    return maps


def check_same_shape(first: str, a: Array, second: str, b: Array) -> None:
    """Raise ShapeError for two arrays of different shapes, whose flattened entries would not correspond."""
    if a.shape != b.shape:
        raise ShapeError(f"{first} and {second} must have one shape, but got {a.shape} and {b.shape}")
