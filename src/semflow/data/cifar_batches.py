"""The Python batches of CIFAR-10: pickles, read without executing code from them."""

import pickle
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from semflow.errors import DataError

__all__ = ["TEST_FILES", "TRAIN_FILES", "read_batch"]

TRAIN_FILES = tuple(f"data_batch_{k}" for k in range(1, 6))
TEST_FILES = ("test_batch",)


def read_batch(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the images (N, 3, 32, 32) and labels (N,), 0 to 9, of a batch.

    A pickle may name any function for its reader to call. A batch needs only an array and its dtype, so any other name
    is an error, and a malicious file cannot run code.
    """
    try:
        with file.open("rb") as opened:
            batch = _BatchUnpickler(file, opened).load()
    except FileNotFoundError:
        raise DataError(
            f"{file} must be a batch of CIFAR-10, but got no such file; unpack cifar-10-python.tar.gz completely"
        ) from None
    except DataError:
        raise
    except Exception as error:  # a broken pickle raises errors of any class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{file} must be a batch of CIFAR-10, but got the error {reason!r}; unpack it again") from None
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
            f"{file} must contain uint8 data (N, 3072) and labels from 0 to 9, but got other content; "
            "use the Python version of CIFAR-10"
        )
    if len(data) != len(labels):
        raise DataError(f"{file} must have one label per image, but got {len(labels)} for {len(data)}; unpack it again")
    return data.reshape(-1, 3, 32, 32), np.asarray(labels, dtype=np.int64)


class _BatchUnpickler(pickle.Unpickler):
    """Unpickler of arrays, bytes, lists and dicts that calls only functions of this module."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        super().__init__(file, encoding="bytes")  # Python 2 wrote the batches

    def find_class(self, module: str, name: str) -> object:
        # The lambdas are new at each use: a pickle can set attributes of functions and must not affect later reads.
        match module, name:
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct"):
                # An empty array; the pickle then sets dtype, shape and bytes, which NumPy checks.
                return lambda subtype, shape, dtype: np.ndarray((0,), np.uint8)
            case "numpy", "ndarray":
                return np.ndarray
            case "numpy", "dtype":
                return np.dtype
            case "_codecs", "encode":
                return lambda text, encoding: text.encode("latin1")  # Python 3 writes bytes so for old protocols
        raise DataError(f"{self.path} must contain only arrays and lists, but got {module}.{name}; delete the file")
