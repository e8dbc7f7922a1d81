"""Blocks of images, each committed as one file: a run that is killed and started again does what is missing."""

__all__ = ["BLOCKS", "BlockStore", "read_manifest"]

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from semflow._version import __version__
from semflow.errors import DataError
from semflow.files import hash_parts, refuse_occupied, remove_partial, replace_file, writing

from .listing import Listing
from .rows import Block, Committed, read_about

MANIFEST, BLOCKS = "score.json", "blocks"
FORMAT = 1
SAID = {"semflow": "version of semflow", "images": "number of images in --input", "input": "--input"}


class BlockStore:
    """A folder with a manifest, `score.json`, and a file a block in `blocks/`.

    The manifest says what the rows depend on: the model, the images, the size of a block, the version. A block's file
    is named by its number and by a hash of the manifest and of its images' names, and appears in one step when it is
    whole. Whoever writes it, and how often, it holds the same rows.

    Args:
        folder: of the results.
        listing: the images.
        block_size: images in a block.
        origin: what else the rows depend on, by the name of its option.

    Raises:
        DataError: the folder holds something else, or a run of other images, blocks, options or another model.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     listing = Listing(Path(folder), ("a.png", "b.png", "c.png"))
        ...     store = BlockStore(Path(folder), listing, 2, {"--model": "5f0c"})
        ...     store.open()
        ...     committed = store.committed(print)
        >>> [block.names for block in store], committed
        ([('a.png', 'b.png'), ('c.png',)], {})
    """

    def __init__(self, folder: Path, listing: Listing, block_size: int, origin: Mapping[str, Any]) -> None:
        self.folder, self.listing, self.block_size = folder, listing, block_size
        about = {"format": FORMAT, "semflow": __version__, **origin, "--block-size": block_size}
        self.manifest: dict[str, Any] = {**about, "images": len(listing.names), "input": listing.digest}

    def open(self) -> None:
        """Begin the folder, or see that it was begun in the same way."""
        if not (self.folder / MANIFEST).is_file():
            refuse_occupied(self.folder)
        with writing(self.folder):
            if not (self.folder / MANIFEST).is_file():
                (self.folder / BLOCKS).mkdir(parents=True, exist_ok=True)
                text = json.dumps(self.manifest, indent=2) + "\n"
                replace_file(self.folder / MANIFEST, lambda file: file.write_text(text, encoding="utf-8"), durable=True)
        begun = read_manifest(self.folder)
        for key in {**self.manifest, **begun}:
            was, now = begun.get(key), self.manifest.get(key)
            if was != now:
                raise DataError(
                    f"output {self.folder} was begun with another {SAID.get(key, key)}: it was {was} and is {now}; "
                    "go on with what it was, or choose a new folder"
                )

    def __len__(self) -> int:
        return -(-len(self.listing.names) // self.block_size)

    def __iter__(self) -> Iterator[Block]:
        stem = json.dumps(self.manifest, sort_keys=True)
        for index, start in enumerate(range(0, len(self.listing.names), self.block_size)):
            names = self.listing.names[start : start + self.block_size]
            yield Block(index, f"{index:07d}-{hash_parts((stem, *names))[:16]}.parquet", names)

    def committed(self, notice: Callable[[str], object]) -> dict[int, Committed]:
        """The committed blocks by number.

        Args:
            notice: is told, in a line, of a file that is broken; its block is done again.

        Raises:
            DataError: among the blocks lies a file that is none of them.
        """
        with writing(self.folder / BLOCKS):
            (self.folder / BLOCKS).mkdir(exist_ok=True)
            there = {path.name for path in (self.folder / BLOCKS).iterdir() if not path.name.startswith(".")}
        found = {}
        for block in self:
            if block.file in there:
                there.remove(block.file)
                path = self.folder / BLOCKS / block.file
                try:
                    about = read_about(path)
                    if (about.block, about.images) != (block.number, len(block.names)):
                        raise DataError(f"it holds {about.images} images of block {about.block}")
                    found[block.number] = about
                except DataError as error:
                    notice(f"{path}: broken, its block is done again ({error})")
        if there:
            raise DataError(
                f"output {self.folder / BLOCKS} holds {min(there)}, which is none of its blocks; move it away"
            )
        return found

    def tidy(self) -> None:
        """Remove what killed processes have left of writing blocks; to be called when all are there."""
        remove_partial(self.folder / BLOCKS)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a folder of results says of itself.

    Raises:
        DataError: it says nothing, or something broken.
    """
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected the manifest of a run, but: {error}; choose a new folder") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected an object of JSON, but got {type(found).__name__}; choose a new folder")
    return found
