"""Parquet files of blocks: one row per image, and a summary in the metadata for restarts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from semflow._optional import import_optional
from semflow.errors import DataError
from semflow.files import replace_file, writing

KEY = b"semflow"


class Block(NamedTuple):
    """Number of a block, name of its file, and names of the images that are committed together.

    Example:
        >>> Block(0, "0000000-5f0c.parquet", ("a.png", "b.png")).names
        ('a.png', 'b.png')
    """

    number: int
    file: str
    names: tuple[str, ...]


class Committed(NamedTuple):
    """Summary of a committed block.

    Args:
        block: Number of the block.
        images: Number of rows.
        errors: Number of images that could not be read.
        error: The first error message, or "".
        anomalous: Number of anomalous images; None if the model is not calibrated.
        highest: Highest score; None if no image could be read.
        image: Name of the image with the highest score, or "".

    Example:
        >>> Committed(block=0, images=2, errors=0, error="", anomalous=1, highest=2.5, image="b.png").image
        'b.png'
    """

    block: int
    images: int
    errors: int
    error: str
    anomalous: int | None
    highest: float | None
    image: str


def commit_block(folder: Path, block: Block, rows: Mapping[str, list[Any]]) -> Committed:
    """Write the file of a block atomically and durably, and return its summary.

    The rows are the columns `score`, `p_value` and `is_anomalous`, with None for missing values, and `error`, "" for
    none.
    """
    arrow, parquet = import_optional("pyarrow"), import_optional("pyarrow.parquet")
    names = [printable(name) for name in block.names]
    errors = [printable(text) for text in rows["error"] if text]
    scored = [(score, name) for score, name in zip(rows["score"], names, strict=True) if score is not None]
    highest, image = max(scored, default=(None, ""))
    decisions = [x for x in rows["is_anomalous"] if x is not None]
    anomalous = sum(decisions) if decisions else None
    about = Committed(block.number, len(names), len(errors), errors[0] if errors else "", anomalous, highest, image)
    text, number = arrow.string(), arrow.float64()
    types = {"path": text, "score": number, "p_value": number, "is_anomalous": arrow.bool_(), "error": text}
    columns = {**rows, "path": names, "error": [printable(error) or None for error in rows["error"]]}
    schema = arrow.schema(types.items(), metadata={KEY: json.dumps(about._asdict())})
    path = folder / block.file
    with writing(path):
        replace_file(path, lambda file: parquet.write_table(arrow.table(columns, schema=schema), file), durable=True)
    return about


def read_about(path: Path, block: Block) -> Committed:
    """Read the summary of a block from its file. Raise DataError if the file is broken or of another block."""
    arrow, parquet = import_optional("pyarrow"), import_optional("pyarrow.parquet")
    try:
        about = Committed(**json.loads(parquet.read_metadata(path).metadata[KEY]))
    except (arrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise DataError(f"{path.name} must be a Parquet file of semflow score, but got {reason}") from None
    if (about.block, about.images) != (block.number, len(block.names)):
        raise DataError(f"metadata must be of block {block.number}, but got {about.images} images of {about.block}")
    return about


def printable(text: str) -> str:
    """Escape surrogates, which stand for undecodable bytes in file names."""
    return text.encode("utf-8", "backslashreplace").decode()
