"""Digests at the end of exported files; both formats ignore them.

A flipped bit in a weight leaves a model that runs and gives other scores. Archives of torch have checksums. An ONNX
file is one protobuf message, and appended bytes are merged into it: the digest is one more entry of its metadata. An
OpenVINO file is XML, and the digest is a comment; it covers the weights in the `.bin` file too.
"""

from pathlib import Path

from semflow.errors import CheckpointError
from semflow.files import hash_file, hash_parts

NAME = b"semflow.sha256"
# In ONNX, field 14 of a model (metadata_props) has a key (field 1) and a value (field 2), each after its length.
ENDS = {".onnx": (b"\x72\x52\x0a\x0e" + NAME + b"\x12\x40", b""), ".xml": (b"<!-- " + NAME + b" ", b" -->\n")}
DIGITS = 64


def append_digest(path: Path) -> None:
    """Append the digest to a file without one."""
    before, after = ENDS[path.suffix]
    digits = _digest(path, path.stat().st_size).encode()
    with path.open("ab") as file:
        file.write(before + digits + after)


def check_digest(path: Path) -> None:
    """Compare a file with its digest. Files without a digest, such as those of other programs, are not checked."""
    before, after = ENDS[path.suffix]
    length = len(before) + DIGITS + len(after)
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - length))
        end = file.read()
    if not (len(end) == length and end.startswith(before) and end.endswith(after)):
        return
    if end[len(before) : len(before) + DIGITS] != _digest(path, size - length).encode():
        files = "it or the .bin file" if path.suffix == ".xml" else "it"
        raise CheckpointError(
            f"{path} must match its digest, but got other content: {files} is damaged; copy it again or export the "
            "model again"
        )


def _digest(path: Path, size: int) -> str:
    """Compute the digest of the first bytes of a file, and for OpenVINO of its `.bin` file too."""
    digest = hash_file(path, size)
    return hash_parts((digest, hash_file(path.with_suffix(".bin")))) if path.suffix == ".xml" else digest
