"""Files that are whole or not there, and tensors in them that are looked at before they are read."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from semflow.errors import CheckpointError

__all__ = ["check_digest", "clear_partial", "load_tensors", "read_about", "save_tensors", "write_atomic", "writing"]

ABOUT, DIGEST = "semflow", "sha256"
LARGEST_HEADER = 2**23
LARGEST_FLEXIBLE = 10**7
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_atomic(path: Path, write: Callable[[Path], object], durable: bool = False) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there.

    Args:
        path: the file.
        write: writes to the path that it is given.
        durable: wait until the disk has it, so that not even a power cut leaves half a file.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable and os.name == "posix":
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def clear_partial(folder: Path, names: Sequence[str]) -> None:
    """Remove what killed processes have left of writing these files."""
    for name in names:
        for path in folder.glob(f".{name}.*"):
            path.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, advice: str) -> Iterator[None]:
    """What cannot be written - the disk is full, the folder read-only - becomes a CheckpointError with an advice."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise CheckpointError(
            f"{path}: cannot be written, {reason or ' '.join(str(error).split())}; {advice}"
        ) from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a safetensors file whose metadata holds `about` as JSON, and a digest of the tensors.

    One entry of the metadata, as the order of several would differ from one writing to the next.

    Raises:
        OSError: the disk refuses.
    """
    whole = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    metadata = {ABOUT: json.dumps({**about, DIGEST: _digest(whole)}, sort_keys=True)}
    try:
        write_atomic(path, lambda file: safetensors.torch.save_file(whole, file, metadata), durable=True)
    except safetensors.SafetensorError as error:  # it has the system's number in its words
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def read_about(path: Path) -> dict[str, Any]:
    """The metadata of a safetensors file.

    Raises:
        CheckpointError: the file is not one.
    """
    with _opened(path) as file:
        return _about(file, path)


def load_tensors(
    path: Path, expected: Mapping[str, Tensor], optional: Sequence[str] = (), flexible: Sequence[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata of a safetensors file that should hold what `expected` does.

    Names, shapes and types are compared before anything is read: the memory taken is that of `expected`.

    Args:
        path: the file.
        expected: by name, tensors of the shape and type that are asked for.
        optional: beginnings of names that may be missing.
        flexible: beginnings of names that may be missing or of other lengths, up to ten million numbers.

    Raises:
        CheckpointError: it is no safetensors file, cut short, or of something else.
    """
    with _opened(path) as file:
        about, found = _about(file, path), set(file.keys())
        for name in sorted(expected.keys() | found):
            if name not in found:
                if not name.startswith((*optional, *flexible)):
                    raise _other(path, name, expected[name], "none")
                continue
            piece = file.get_slice(name)
            shape, kind = tuple(piece.get_shape()), str(piece.get_dtype())
            if name not in expected and name.startswith(tuple(flexible)) and _size(shape) <= LARGEST_FLEXIBLE:
                continue  # empty so far: its module looks at it when it takes it
            if name not in expected:
                raise CheckpointError(
                    f"{path}: of another detector, expected no {name[:80]!r} but got {_told(shape, kind)}"
                )
            own = expected[name]
            free = name.startswith(tuple(flexible)) and len(shape) == own.dim() and _size(shape) <= LARGEST_FLEXIBLE
            if kind != DTYPES.get(own.dtype) or (shape != tuple(own.shape) and not free):
                raise _other(path, name, own, _told(shape, kind))
        return {name: file.get_tensor(name) for name in sorted(found)}, about


def check_digest(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Whether the tensors are those that were written: a damaged number is a number all the same.

    Raises:
        CheckpointError: they are not. Files of before there was a digest are taken as they are.
    """
    if about.get(DIGEST, "") not in ("", _digest(tensors)):
        raise CheckpointError(
            f"{path}: damaged, expected the numbers that were written but got others; copy the file again or fit the "
            "model again"
        )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        digest.update(json.dumps([name, DTYPES.get(x.dtype), list(x.shape)]).encode())
        digest.update(x.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, if its first bytes are those of a safetensors file of its length."""
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a safetensors file, but there is none; make one with semflow fit")
    try:
        size = path.stat().st_size
        with path.open("rb") as raw:
            header = int.from_bytes(raw.read(8), "little")
        if not 2 <= header <= min(size - 8, LARGEST_HEADER):
            raise CheckpointError(
                f"{path}: broken, expected a safetensors file, but of {size} bytes {header} should be its header; "
                "copy the file again or fit the model again"
            )
        with safetensors.safe_open(path, "pt") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: broken, expected a safetensors file ({reason}); copy the file again or fit the model again"
        ) from error


def _about(file: Any, path: Path) -> dict[str, Any]:
    """The metadata as it was written, or that of a file of before there was one entry for all."""
    metadata = file.metadata() or {}
    if ABOUT not in metadata:
        return dict(metadata)
    try:
        about = json.loads(metadata[ABOUT])
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise CheckpointError(f"{path}: broken, expected JSON in its metadata; fit the model again")
    return about


def _other(path: Path, name: str, own: Tensor, came: str) -> CheckpointError:
    wanted = _told(tuple(own.shape), DTYPES.get(own.dtype, str(own.dtype)))
    return CheckpointError(f"{path}: of another detector, expected {wanted} for {name[:80]} but got {came}")


def _told(shape: tuple[int, ...], kind: str) -> str:
    return f"{shape} of {kind}"


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
