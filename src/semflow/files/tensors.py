"""Safetensors files with metadata and a digest, checked before their tensors are read."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from semflow.errors import CheckpointError

from .atomic import replace_file
from .digests import hash_tensors

ABOUT, DIGEST = "semflow", "sha256"
LARGEST_HEADER = 2**23
REPAIR = "copy the file again or fit the model again"
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a safetensors file atomically, with `about` and a digest of the tensors as JSON in its metadata.

    The metadata has a single entry, since safetensors writes several in random order.
    """
    ready = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    metadata = {ABOUT: json.dumps({**about, DIGEST: hash_tensors(ready)}, sort_keys=True)}
    try:
        replace_file(path, lambda file: safetensors.torch.save_file(ready, file, metadata), durable=True)
    except safetensors.SafetensorError as error:  # its message contains the system's error number
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = (int(found[1]), os.strerror(int(found[1]))) if found else (0, " ".join(str(error).split()))
        raise OSError(*number, str(path)) from error


def read_about(path: Path) -> dict[str, Any]:
    """Return the metadata of a safetensors file."""
    with _opened(path) as file:
        return _about(file, path)


def float_types(path: Path) -> dict[str, torch.dtype]:
    """Return the types of the tensors of a safetensors file that are float32 or float64, by name."""
    types = {DTYPES[dtype]: dtype for dtype in (torch.float32, torch.float64)}
    with _opened(path) as file:
        found = {name: str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
    return {name: types[dtype] for name, dtype in found.items() if dtype in types}


def load_tensors(
    path: Path, expected: Mapping[str, Tensor], optional: Sequence[str] = (), flexible: Mapping[str, int] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load the tensors and the metadata of a safetensors file.

    Names, shapes and types are compared before any tensor is read, so a forged file cannot exhaust the memory.

    Args:
        path: The file.
        expected: Tensors of the expected names, shapes and types.
        optional: Prefixes of names that may be missing.
        flexible: Prefixes of names that may be missing or have other lengths, with the largest number of values.
    """
    with _opened(path) as file:
        about, found = _about(file, path), set(file.keys())
        for name in sorted(expected.keys() | found):
            own, given = expected.get(name), "none"
            most = max((most for prefix, most in (flexible or {}).items() if name.startswith(prefix)), default=-1)
            fits = most >= 0 or name.startswith(tuple(optional))
            if name in found:
                shape, dtype = tuple(file.get_slice(name).get_shape()), str(file.get_slice(name).get_dtype())
                given = f"{shape} of {dtype}"
                fits = free = math.prod(shape) <= most
                if own is not None:  # a flexible tensor may be unknown: its module checks it
                    same = shape == tuple(own.shape) or (free and len(shape) == own.dim())
                    fits = same and dtype == DTYPES.get(own.dtype)
            if not fits:
                wanted = "no tensor" if own is None else f"{tuple(own.shape)} of {DTYPES.get(own.dtype, own.dtype)}"
                raise CheckpointError(
                    f"{path} must have {wanted} for {name[:80]}, but got {given}; "
                    "load it into the detector that it was saved from"
                )
        return {name: file.get_tensor(name) for name in sorted(found)}, about


def check_digest(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Compare the tensors with the digest of the file. Files without a digest are not checked."""
    if about.get(DIGEST, "") not in ("", hash_tensors(tensors)):
        raise CheckpointError(f"{path} must match its digest, but got other values: the file is damaged; {REPAIR}")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file whose first bytes give a header that fits into it."""
    if not path.is_file():
        raise CheckpointError(f"{path} must be a safetensors file, but got none; create one with semflow fit")
    try:
        size = path.stat().st_size
        with path.open("rb") as raw:
            header = int.from_bytes(raw.read(8), "little")
        if not 2 <= header <= min(size - 8, LARGEST_HEADER):
            raise CheckpointError(
                f"{path} must be a safetensors file, but got {size} bytes with a header of {header}; {REPAIR}"
            )
        with safetensors.safe_open(path, "pt") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} must be a safetensors file, but got {reason}; {REPAIR}") from error


def _about(file: Any, path: Path) -> dict[str, Any]:
    text = (file.metadata() or {}).get(ABOUT, "{}")
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise CheckpointError(f"{path} must have JSON as metadata, but got {text[:40]!r}; {REPAIR}")
    return about
