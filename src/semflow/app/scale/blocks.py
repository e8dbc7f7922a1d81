"""Blocks of images, each committed as one file, so that a restarted run does only the missing ones."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from semflow._optional import import_optional
from semflow._version import __version__
from semflow.errors import DataError
from semflow.files import hash_parts, refuse_occupied, remove_partial, replace_file, writing

from .listing import Listing

MANIFEST, BLOCKS = "score.json", "blocks"
FORMAT, KEY = 1, b"semflow"
LABELS = {"semflow": "version of semflow", "images": "number of images in --input", "input": "--input"}


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
        paged: Number of files with further pages, which are not read.

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
    paged: int = 0


class BlockStore:
    """Folder with a manifest, `score.json`, and one file per block in `blocks/`.

    The manifest stores what the rows depend on: model, images, block size and version. The name of a block's file
    contains its number and a digest of the manifest and of its image names; the file appears atomically. Every worker
    that computes a block writes the same rows.

    Args:
        folder: Folder of the results.
        listing: The images.
        block_size: Images per block.
        origin: Other values that the rows depend on, by the name of the option.

    Example:
        >>> listing = Listing(Path("parts"), ("a.png", "b.png", "c.png"))
        >>> [block.names for block in BlockStore(Path("results"), listing, 2, {"--model": "5f0c"})]
        [('a.png', 'b.png'), ('c.png',)]
    """

    def __init__(self, folder: Path, listing: Listing, block_size: int, origin: Mapping[str, Any]) -> None:
        self.folder, self.listing, self.block_size = folder, listing, block_size
        about = {"format": FORMAT, "semflow": __version__, **origin, "--block-size": block_size}
        self.manifest: dict[str, Any] = {**about, "images": len(listing.names), "input": listing.digest}

    def open(self) -> None:
        """Create the folder, or check that it was created with the same manifest."""
        if not (self.folder / MANIFEST).is_file():
            refuse_occupied(self.folder)
            with writing(self.folder):
                (self.folder / BLOCKS).mkdir(parents=True, exist_ok=True)
                text = json.dumps(self.manifest, indent=2) + "\n"
                replace_file(self.folder / MANIFEST, lambda file: file.write_text(text, encoding="utf-8"), durable=True)
        stored = read_manifest(self.folder)
        for key in {**self.manifest, **stored}:
            was, now = stored.get(key), self.manifest.get(key)
            if was != now:
                raise DataError(
                    f"{LABELS.get(key, key)} must be {was} as in {self.folder}, but got {now}; "
                    "use the same value or choose a new folder"
                )

    def __len__(self) -> int:
        return -(-len(self.listing.names) // self.block_size)

    def __iter__(self) -> Iterator[Block]:
        stem = json.dumps(self.manifest, sort_keys=True)
        for index, start in enumerate(range(0, len(self.listing.names), self.block_size)):
            names = self.listing.names[start : start + self.block_size]
            yield Block(index, f"{index:07d}-{hash_parts((stem, *names))[:16]}.parquet", names)

    def committed(self, notice: Callable[[str], object]) -> dict[int, Committed]:
        """Return the committed blocks by number. A broken file is reported to `notice`, and its block is missing."""
        folder = self.folder / BLOCKS
        with writing(folder):
            folder.mkdir(exist_ok=True)
            there = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        found = {}
        for block in (block for block in self if block.file in there):
            there.remove(block.file)
            try:
                found[block.number] = read_about(folder / block.file, block)
            except DataError as error:
                notice(f"{folder / block.file} is broken, its block is computed again: {error}")
        if there:
            raise DataError(f"{folder} must contain only blocks, but got {min(there)}; move it elsewhere")
        return found

    def tidy(self) -> None:
        """Remove temporary files of killed processes; call it when all blocks are committed."""
        remove_partial(self.folder / BLOCKS)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder of results."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} must be the manifest of a run, but got {error}; choose a new folder") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} must be a JSON object, but got {type(found).__name__}; choose a new folder")
    return found


def commit_block(folder: Path, block: Block, rows: Mapping[str, list[Any]], paged: int = 0) -> Committed:
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
    first = errors[0] if errors else ""
    about = Committed(block.number, len(names), len(errors), first, anomalous, highest, image, paged)
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


def read_scores(store: BlockStore) -> tuple[list[float], list[float], list[str]]:
    """Return scores, p-values and names of the images of all blocks that have both, in order."""
    parquet = import_optional("pyarrow.parquet")
    rows: list[tuple[float, float, str]] = []
    for block in store:
        table = parquet.read_table(store.folder / BLOCKS / block.file, columns=["score", "p_value"]).to_pydict()
        columns = zip(table["score"], table["p_value"], block.names, strict=True)
        rows += [row for row in columns if row[0] is not None and row[1] is not None]
    scores, p_values, names = ([row[k] for row in rows] for k in range(3))
    return scores, p_values, names  # type: ignore[return-value]


def printable(text: str) -> str:
    """Escape surrogates, which stand for undecodable bytes in file names."""
    return text.encode("utf-8", "backslashreplace").decode()
