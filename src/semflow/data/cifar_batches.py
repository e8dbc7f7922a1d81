"""The Python batches of CIFAR-10: pickles, read without letting them run anything."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from semflow.errors import DataError

__all__ = ["TEST_FILES", "TRAIN_FILES", "read_batch"]

TRAIN_FILES = tuple(f"data_batch_{k}" for k in range(1, 6))
TEST_FILES = ("test_batch",)


def read_batch(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 3, 32, 32) and labels (N,), 0 to 9, of a batch.

    A pickle may name any function for its reader to call. A batch needs an array and its type, and any other name is
    an error here; so a file that only claims to be a batch cannot run code.

    Raises:
        DataError: there is no such file, it is cut short, or it holds something else.
    """
    try:
        with file.open("rb") as opened:
            batch = _BatchUnpickler(opened).load()
    except FileNotFoundError:
        raise DataError(
            f"{file}: expected a batch of CIFAR-10, but there is none; unpack cifar-10-python.tar.gz completely."
        ) from None
    except Exception as error:  # a broken pickle fails in whatever its bytes happen to mean
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{file}: expected a whole batch of CIFAR-10, but: {reason}; unpack it again.") from None
    data, labels = (batch.get(key) for key in (b"data", b"labels")) if isinstance(batch, dict) else (None, None)
    if not (
        isinstance(data, np.ndarray)
        and data.dtype == np.uint8
        and data.ndim == 2
        and data.shape[1] == 3 * 32 * 32
        and isinstance(labels, list)
        and all(type(label) is int and 0 <= label < 10 for label in labels)
    ):
        raise DataError(
            f"{file}: expected data (N, 3072) of uint8 and labels from 0 to 9, as CIFAR-10 has them, but got other "
            "content; take the Python version of CIFAR-10."
        )
    if len(data) != len(labels):
        raise DataError(
            f"{file}: expected a label for each of {len(data)} images, but got {len(labels)}; unpack it again."
        )
    return data.reshape(-1, 3, 32, 32), np.asarray(labels, dtype=np.int64)


class _BatchUnpickler(pickle.Unpickler):
    """Arrays, bytes, lists and dicts; the functions that make them are this class's own."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="bytes")  # the batches were written by Python 2

    def find_class(self, module: str, name: str) -> object:
        match module, name:
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct"):
                return _new_array_maker()
            case "numpy", "ndarray":
                return np.ndarray
            case "numpy", "dtype":
                return np.dtype
            case "_codecs", "encode":
                return _new_encoder()
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no batch needs")


# Made anew at each use: a pickle can set attributes of the functions that it gets, and must not change later reading.


def _new_array_maker() -> Callable[[object, object, object], NDArray[np.generic]]:
    def make(subtype: object, shape: object, dtype: object) -> NDArray[np.generic]:
        """An empty array, whatever is asked for: the pickle then sets type, shape and bytes, which NumPy compares."""
        return np.ndarray((0,), np.uint8)

    return make


def _new_encoder() -> Callable[[str, str], bytes]:
    def encode(text: str, encoding: str) -> bytes:
        """How Python 3 writes bytes for the old protocols."""
        return text.encode("latin1")

    return encode
