"""Files that are complete or absent: atomic writes, digests, and tensors that are checked before they are read."""

from .tensors import check_digest, clear_partial, load_tensors, read_about, save_tensors, write_atomic, writing

__all__ = [
    "check_digest",
    "clear_partial",
    "load_tensors",
    "read_about",
    "save_tensors",
    "write_atomic",
    "writing",
]
