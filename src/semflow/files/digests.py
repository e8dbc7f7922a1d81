"""SHA-256 digests of texts, files and tensors, as 64 hexadecimal digits."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CHUNK, THREADS = 2**20, 4


def hash_parts(parts: Iterable[str]) -> str:
    """Compute the digest of several texts: of each in UTF-8, with a zero byte after it.

    Surrogates, which stand for undecodable bytes in file names, are encoded as these bytes.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def hash_file(path: Path, size: int | None = None) -> str:
    """Compute the digest of a file, or of its first `size` bytes."""
    with path.open("rb") as file:
        if size is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while size > 0 and (chunk := file.read(min(CHUNK, size))):
            digest.update(chunk)
            size -= len(chunk)
        return digest.hexdigest()


def hash_tensor(tensor: "Tensor") -> str:
    """Compute the digest of a tensor's type, shape and values."""
    return _digest(*_header_and_bytes(tensor))


def hash_tensors(tensors: Mapping[str, "Tensor"]) -> str:
    """Compute the digest of tensors and their names, whatever their order."""
    names, threads = sorted(tensors), min(THREADS, os.cpu_count() or 1)
    digests: list[Future[str]] = []
    with ThreadPoolExecutor(threads) as pool:
        # Tensors are copied from a device here, a few at a time: only the bytes are for other threads.
        for number, name in enumerate(names):
            if number >= threads:
                digests[number - threads].result()
            digests.append(pool.submit(_digest, *_header_and_bytes(tensors[name])))
    return hash_parts(part for name, digest in zip(names, digests, strict=True) for part in (name, digest.result()))


def _header_and_bytes(tensor: "Tensor") -> tuple[bytes, memoryview]:
    import torch

    header = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    if not tensor.numel():  # one without elements may have strides that forbid the view
        return header, memoryview(b"")
    return header, tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _digest(header: bytes, values: memoryview) -> str:
    digest = hashlib.sha256(header)
    digest.update(values)
    return digest.hexdigest()
