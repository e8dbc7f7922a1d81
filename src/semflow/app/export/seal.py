"""The end of an exported file: a digest of all that stands before it, which both formats read over.

A bit that flips in a weight leaves a model that runs and gives other scores. Archives of torch have checksums of their
own. A file of ONNX is one protobuf message, and what is appended to it is merged into it: one more entry of its
metadata. A file of OpenVINO is XML, and takes a comment; its digest is of the weights in the `.bin` too.
"""

from pathlib import Path

from semflow.errors import CheckpointError
from semflow.files import hash_file, hash_parts

__all__ = ["check_seal", "seal"]

NAME = b"semflow.sha256"
# Field 14 of a model, metadata_props, holds a key (field 1) and a value (field 2), each after its length.
ENDS = {
    ".onnx": (b"\x72\x52\x0a\x0e" + NAME + b"\x12\x40", b""),
    ".xml": (b"<!-- " + NAME + b" ", b" -->\n"),
}
DIGITS = 64


def seal(path: Path) -> None:
    """Append the digest to a file that has none.

    Raises:
        OSError: the disk refuses.
    """
    before, after = ENDS[path.suffix]
    digits = _digest(path, path.stat().st_size).encode()
    with path.open("ab") as file:
        file.write(before + digits + after)


def check_seal(path: Path) -> None:
    """Whether a file is as it was sealed. One without a seal, which another program may have written, is left alone.

    Raises:
        CheckpointError: it is not.
    """
    before, after = ENDS[path.suffix]
    length = len(before) + DIGITS + len(after)
    whole = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, whole - length))
        end = file.read()
    if not (len(end) == length and end.startswith(before) and end.endswith(after)):
        return
    if end[len(before) : len(before) + DIGITS] != _digest(path, whole - length).encode():
        beside = " or the .bin beside it" if path.suffix == ".xml" else ""
        raise CheckpointError(
            f"{path}: damaged, expected the file that was exported, but its content{beside} is another; copy it again "
            "or export the model again"
        )


def _digest(path: Path, size: int) -> str:
    """Compute the digest of the first bytes of a file, and for OpenVINO of the `.bin` beside it."""
    digest = hash_file(path, size)
    return hash_parts((digest, hash_file(path.with_suffix(".bin")))) if path.suffix == ".xml" else digest
