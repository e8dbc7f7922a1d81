"""Pipeline on Ray: tasks decode the images of a block, and actors with the model score and commit it."""

import json
import math
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from semflow import errors
from semflow._channels import in_color
from semflow._memory import is_out_of_memory, memory_advice
from semflow._optional import import_optional
from semflow._validation import Size, counted, height_and_width
from semflow.data.decoding import decode_doubting
from semflow.data.resizing import Resize, resize_image
from semflow.detectors import Predictor
from semflow.errors import ConfigError, DataError, ProcessError, SemflowError

from . import waiting
from .blocks import BLOCKS, Block, BlockStore, Committed, commit_block, printable, read_manifest
from .cluster import resources
from .waiting import rows_while_possible

LARGEST = 2**30
"""Most bytes of the decoded images of a block, which are sent together."""


@dataclass(frozen=True)
class Workers:
    """Processes that score.

    Args:
        count: Number of processes, each with the model.
        threads: CPUs of each process without a GPU.
        gpu: Whether each process has a GPU.
        batch_size: Images per batch.
    """

    count: int = 1
    threads: int = 1
    gpu: bool = False
    batch_size: int = 8

    @property
    def cpus(self) -> int:
        """Number of CPUs of all workers and of one task that decodes images."""
        return 1 + (0 if self.gpu else self.count * self.threads)


def score_blocks(
    ray: Any,
    store: BlockStore,
    blocks: Sequence[Block],
    load: Callable[[], Predictor],
    image_size: Size | None,
    workers: Workers,
    skip: bool = False,
    resize: Resize = "stretch",
) -> Iterator[Committed]:
    """Score blocks and yield their summaries, in the order in which they are committed.

    Tasks of one CPU each decode the images on all CPUs that the workers leave free. The folder of the store, the images
    and the model must have the same paths on all machines.

    Args:
        ray: Module `ray`, see `connected`.
        store: Opened store.
        blocks: Blocks of the store to score.
        load: Picklable function that returns the model on its device.
        image_size: Side of the model's images in pixels, or (height, width); None for images of any size, which each
            worker decodes itself.
        workers: Processes to start.
        skip: Store the error of an image that cannot be read in its row, instead of raising it.
        resize: How images are brought to this size.

    Raises:
        SemflowError: If a worker raised it, for instance DataError for an image that cannot be read or a full disk.
        ProcessError: If a worker failed in another way, or the cluster lost a machine and cannot run all workers.
    """
    height, width = height_and_width(image_size or 1)
    shape = (3 if resize == "stretch" else 4, height, width)
    bytes_each = store.block_size * math.prod(shape)
    if bytes_each > LARGEST:
        most = LARGEST // math.prod(shape)
        raise ConfigError(
            f"--block-size must be at most {most} for images of {image_size} px, but got {store.block_size}, "
            f"which needs {bytes_each / 2**30:.1f} GiB; choose a smaller one"
        )
    data: Any = import_optional("ray.data")
    items = [{"block": b.number, "file": b.file, "names": [os.fsencode(name) for name in b.names]} for b in blocks]
    own: dict[str, Any] = {"num_gpus": 1} if workers.gpu else {"num_cpus": workers.threads}
    pipeline = data.from_items(items, override_num_blocks=len(items))
    if image_size is not None:
        # The memory keeps Ray from fusing decoding into the workers, as it does for steps of equal resources.
        pipeline = pipeline.map(_decode, fn_args=(store.listing.root, shape, resize), num_cpus=1, memory=bytes_each)
    pipeline = pipeline.map(
        _Worker,
        fn_constructor_args=(store.folder, store.manifest, load, workers, skip, store.listing.root),
        compute=data.ActorPoolStrategy(size=workers.count),
        **own,
    )
    pipeline.context.enable_progress_bars = pipeline.context.print_on_execution_start = False  # not the global context
    try:
        found = rows_while_possible(pipeline.iter_rows(), lambda: _lacking(ray, workers), waiting.PATIENCE)
        with closing(found) as rows:
            for row in rows:
                if row["kind"]:
                    raise getattr(errors, row["kind"])(row["message"])
                yield Committed(**json.loads(row["message"]))
    except ray.exceptions.RayError as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ProcessError(
            f"workers must finish, but got {reason[-1][:300]}; repeat the command to do the remaining blocks"
        ) from error


def _lacking(ray: Any, workers: Workers) -> str:
    """Return the message of the error if the cluster cannot run the workers, and "" otherwise."""
    cpus, gpus = resources(ray)
    if cpus >= workers.cpus and gpus >= workers.gpu * workers.count:
        return ""
    return (
        f"the cluster must run {counted(workers.count, 'worker')}, but got {cpus:g} CPUs and {gpus:g} GPUs after "
        "losing a machine; repeat the command with fewer --workers to do the remaining blocks"
    )


def _decode(row: dict[str, Any], root: Path, shape: tuple[int, int, int], resize: Resize) -> dict[str, Any]:
    """Add the images of a block (N, C, H, W) to its row, and their errors; images that cannot be read are black.

    They are gray if all of them are.
    """
    names = [os.fsdecode(name) for name in row["names"]]
    images = np.zeros((len(names), *shape), np.uint8)
    messages, paged, colored = [""] * len(names), 0, False
    for index, name in enumerate(names):
        try:
            image, more = _read(root / name)
            images[index] = in_color(resize_image(image, shape[1:], resize))
            colored |= image.mode != "L"
            paged += more
        except DataError as error:
            messages[index] = str(error)
    images = images if colored else images[:, 2:].copy()
    return {**row, "images": images, "errors": [os.fsencode(text) for text in messages], "paged": paged}


def _read(path: Path) -> tuple[Image.Image, bool]:
    """Decode an image as data sets do, and return whether its file has further pages."""
    image, doubts = decode_doubting(path)
    for doubt in doubts:
        warnings.warn(doubt.text, stacklevel=1)
    return image, any(doubt.kind == "pages" for doubt in doubts)


class _Worker:
    """Actor with the model. It returns errors as rows: Ray would restart it after an exception and print a long log."""

    def __init__(
        self,
        folder: Path,
        manifest: dict[str, Any],
        load: Callable[[], Predictor],
        workers: Workers,
        skip: bool,
        root: Path,
    ) -> None:
        self.root = root
        self.folder, self.batch_size, self.skip = folder, workers.batch_size, skip
        self.problem: SemflowError | None = None
        self.paged = 0
        try:
            if not workers.gpu:
                torch.set_num_threads(workers.threads)
            if read_manifest(folder) != manifest:
                raise DataError(
                    f"{folder} must be the same folder on all machines, but got another on {socket.gethostname()}; "
                    "choose a shared one"
                )
            self.predictor = load()
        except (SemflowError, OSError) as error:
            self.problem = error if isinstance(error, SemflowError) else DataError(str(error))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        names = tuple(os.fsdecode(name) for name in row["names"])
        try:
            if self.problem is not None:
                raise self.problem
            messages = [os.fsdecode(text) for text in row["errors"]] if "errors" in row else [""] * len(names)
            if any(messages) and not self.skip:
                raise DataError(next(text for text in messages if text))
            batches = self._batches(row["images"], messages) if "images" in row else self._images(names, messages)
            self.paged = int(row.get("paged", 0))
            rows = self._score(batches, names, messages)
            block = Block(int(row["block"]), str(row["file"]), names)
            done = commit_block(self.folder / BLOCKS, block, rows, self.paged)
        except SemflowError as error:
            return {"kind": type(error).__name__, "message": printable(str(error))}
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                return {"kind": "ProcessError", "message": memory_advice(error) or "workers must have enough memory"}
            raise
        return {"kind": "", "message": json.dumps(done._asdict())}

    def _batches(self, images: NDArray[np.uint8], messages: list[str]) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the images of a block that could be read in batches, with their places in the block."""
        readable = [index for index, message in enumerate(messages) if not message]
        for start in range(0, len(readable), self.batch_size):
            indices = readable[start : start + self.batch_size]
            yield indices, torch.from_numpy(images[indices]).float().div_(255.0)

    def _images(self, names: Sequence[str], messages: list[str]) -> Iterator[tuple[list[int], Tensor]]:
        """Decode and yield the images of a block at their own size, one by one, and note the errors of others."""
        for index, name in enumerate(names):
            try:
                image, more = _read(self.root / name)
            except DataError as error:
                if not self.skip:
                    raise
                messages[index] = str(error)
                continue
            self.paged += more
            pixels = resize_image(image, (image.height, image.width))
            yield [index], torch.from_numpy(pixels).float().div_(255.0)[None]

    def _score(
        self, batches: Iterator[tuple[list[int], Tensor]], names: Sequence[str], messages: list[str]
    ) -> dict[str, list[Any]]:
        """Compute the columns of a block, with None for images that could not be read."""
        rows: dict[str, list[Any]] = {key: [None] * len(names) for key in ("score", "p_value", "is_anomalous")}
        for indices, batch in batches:
            prediction = self.predictor.predict(batch)
            for name, column in rows.items():
                values = getattr(prediction, name)  # None if the model is not calibrated
                for index, value in zip(indices, [] if values is None else values.cpu().tolist(), strict=False):
                    column[index] = value
        for name, score in zip(names, rows["score"], strict=True):
            if score is not None and not math.isfinite(score):
                raise ConfigError(f"score of {name} must be finite, but got {score}; fit the model again")
        return {**rows, "error": messages}
