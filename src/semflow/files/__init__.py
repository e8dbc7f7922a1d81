"""Files that are complete or absent: atomic writes, digests, and tensors that are checked before they are read.

Importing this package imports no torch; `semflow.files.tensors` does.
"""

from .atomic import (
    refuse_occupied,
    refuse_unwritable,
    remove_partial,
    replace_file,
    staged_folder,
    staging,
    write_atomic,
    writing,
)
from .digests import hash_file, hash_parts, hash_tensor, hash_tensors

__all__ = [
    "hash_file", "hash_parts", "hash_tensor", "hash_tensors", "refuse_occupied", "refuse_unwritable", "remove_partial",
    "replace_file", "staged_folder", "staging", "write_atomic", "writing",
]  # fmt: skip
