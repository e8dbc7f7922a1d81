"""The file of a block: a row an image, and in its metadata what a restart needs to know of it."""

__all__ = ["Block", "Committed", "commit_block", "printable", "read_about"]

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from semflow._optional import import_optional
from semflow.errors import DataError
from semflow.files import replace_file, writing

KEY = b"semflow"


class Block(NamedTuple):
    """Images that are committed together: the block's number, the name of its file, and its images' names.

    Example:
        >>> Block(0, "0000000-5f0c.parquet", ("a.png", "b.png")).names
        ('a.png', 'b.png')
    """

    number: int
    file: str
    names: tuple[str, ...]


class Committed(NamedTuple):
    """What is known of a committed block without reading its rows.

    Args:
        block: its number.
        images: rows.
        errors: rows of images that could not be read, and the first of them, as a message.
        anomalous: rows that are called anomalous; None where the model is not calibrated.
        highest: the highest score, and the image that has it; None where no image could be read.

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
    """Let the file of a block appear, on the disk before it has its name.

    Args:
        folder: of the blocks.
        block: which.
        rows: `score`, `p_value` and `is_anomalous`, each None where there is none, and `error`, "" where there is none.

    Raises:
        DataError: the system refuses to write.
    """
    arrow, parquet = import_optional("pyarrow"), import_optional("pyarrow.parquet")
    names = [printable(name) for name in block.names]
    errors = [printable(text) for text in rows["error"] if text]
    scored = [(score, name) for score, name in zip(rows["score"], names, strict=True) if score is not None]
    highest, image = max(scored, default=(None, ""))
    said = [x for x in rows["is_anomalous"] if x is not None]
    anomalous = sum(said) if said else None
    about = Committed(block.number, len(names), len(errors), errors[0] if errors else "", anomalous, highest, image)
    columns = {
        "path": arrow.array(names, arrow.string()),
        "score": arrow.array(rows["score"], arrow.float64()),
        "p_value": arrow.array(rows["p_value"], arrow.float64()),
        "is_anomalous": arrow.array(rows["is_anomalous"], arrow.bool_()),
        "error": arrow.array([printable(text) or None for text in rows["error"]], arrow.string()),
    }
    table = arrow.table(columns).replace_schema_metadata({KEY: json.dumps(about._asdict())})
    path = folder / block.file
    with writing(path):
        replace_file(path, lambda file: parquet.write_table(table, file), durable=True)
    return about


def read_about(path: Path) -> Committed:
    """What the metadata of a block's file says.

    Raises:
        DataError: it is no such file, or not a whole one.
    """
    arrow, parquet = import_optional("pyarrow"), import_optional("pyarrow.parquet")
    try:
        return Committed(**json.loads(parquet.read_metadata(path).metadata[KEY]))
    except (arrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(" ".join(f"{type(error).__name__}: {error}".split())[:160]) from None


def printable(text: str) -> str:
    """With escapes for what is no text: names of files may hold any bytes."""
    return text.encode("utf-8", "backslashreplace").decode()
