"""The pipeline: blocks of names, decoded by tasks, scored and committed by a pool of actors that hold the model."""

__all__ = ["Workers", "score_blocks"]

import json
import math
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from semflow import errors
from semflow._optional import import_optional
from semflow.data import decode_image
from semflow.data.decoding import resize_image
from semflow.detectors import Predictor
from semflow.errors import ConfigError, DataError, ProcessError, SemflowError

from . import waiting
from .blocks import BLOCKS, BlockStore, read_manifest
from .cluster import resources
from .rows import Block, Committed, commit_block, printable
from .waiting import rows_while_possible

LARGEST = 2**30
"""Bytes of the images of a block, which travel together."""


@dataclass(frozen=True)
class Workers:
    """Who scores.

    Args:
        count: processes, each with the model.
        threads: CPUs of each, where it has no GPU.
        gpu: whether each has a GPU.
        batch_size: images at a time.
    """

    count: int = 1
    threads: int = 1
    gpu: bool = False
    batch_size: int = 8

    @property
    def cpus(self) -> int:
        """What they need, with one more to decode images."""
        return 1 + (0 if self.gpu else self.count * self.threads)


def score_blocks(
    ray: Any,
    store: BlockStore,
    blocks: Sequence[Block],
    load: Callable[[], Predictor],
    image_size: int,
    workers: Workers,
    skip: bool = False,
) -> Iterator[Committed]:
    """Score blocks and commit them; each is told when its file is there, in any order.

    Decoding runs in tasks of one CPU each, as many as there are CPUs left. The store's folder, the images and the model
    must be at the same place on all machines.

    Args:
        ray: connected, see `connected`.
        store: opened.
        blocks: of it, those to do.
        load: the model, on the device it is to run on; a function that pickles.
        image_size: of the model.
        workers: how many, and of what.
        skip: whether an image that cannot be read becomes a row that says so. Otherwise it ends the run by its error,
            and its block is not committed.

    Raises:
        ConfigError: the blocks are too large.
        SemflowError: of its kind, what a worker has met: an image that cannot be read, a disk that is full.
        ProcessError: a worker failed otherwise, or a machine was lost and those that are left have no room.
    """
    bytes_each = store.block_size * 3 * image_size**2
    if bytes_each > LARGEST:
        most = LARGEST // (3 * image_size**2)
        raise ConfigError(
            f"--block-size {store.block_size}: the images of a block travel together and are {bytes_each / 2**30:.1f} "
            f"GiB at {image_size} px, expected at most 1 GiB; choose {most} or less"
        )
    data: Any = import_optional("ray.data")
    items = [{"block": b.number, "file": b.file, "names": [os.fsencode(name) for name in b.names]} for b in blocks]
    own: dict[str, Any] = {"num_gpus": 1} if workers.gpu else {"num_cpus": workers.threads}
    pipeline = (
        data.from_items(items, override_num_blocks=len(items))
        # Ray would decode inside the workers if both asked for the same resources: this one says its memory too.
        .map(_decode, fn_args=(store.listing.root, image_size), num_cpus=1, memory=bytes_each)
        .map(
            _Worker,
            fn_constructor_args=(store.folder, store.manifest, load, workers, skip),
            compute=data.ActorPoolStrategy(size=workers.count),
            **own,
        )
    )
    pipeline.context.enable_progress_bars = pipeline.context.print_on_execution_start = False  # a copy of its own
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
            f"a worker failed: {reason[-1][:300]}; committed blocks are kept, the same command goes on from there"
        ) from error


def _lacking(ray: Any, workers: Workers) -> str:
    """What the machines that are left lack, as the message that ends the command."""
    cpus, gpus = resources(ray)
    if cpus >= workers.cpus and gpus >= workers.gpu * workers.count:
        return ""
    return (
        f"a machine was lost, and those that are left have {cpus:g} CPUs and {gpus:g} GPUs, too few for "
        f"{workers.count} workers; committed blocks are kept, the same command with fewer --workers goes on from there"
    )


def _decode(row: dict[str, Any], root: Path, image_size: int) -> dict[str, Any]:
    """Add the images of a block (N, 3, S, S), black where one cannot be read, and why it cannot."""
    names = [os.fsdecode(name) for name in row["names"]]
    images = np.zeros((len(names), 3, image_size, image_size), np.uint8)
    messages = [""] * len(names)
    for index, name in enumerate(names):
        try:
            images[index] = resize_image(decode_image(root / name), image_size)
        except DataError as error:
            messages[index] = str(error)
    return {**row, "images": images, "errors": [os.fsencode(text) for text in messages]}


class _Worker:
    """Holds the model; gives for a block what was committed, or the kind and the message of what went wrong.

    What goes wrong is no exception here: Ray would begin the worker again, and tell of it in a hundred lines.
    """

    def __init__(
        self, folder: Path, manifest: dict[str, Any], load: Callable[[], Predictor], workers: Workers, skip: bool
    ) -> None:
        self.folder, self.batch_size, self.skip = folder, workers.batch_size, skip
        self.problem: SemflowError | None = None
        try:
            if not workers.gpu:
                torch.set_num_threads(workers.threads)
            self._check(manifest)
            self.predictor = load()
        except (SemflowError, OSError) as error:
            self.problem = error if isinstance(error, SemflowError) else DataError(str(error))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        names = tuple(os.fsdecode(name) for name in row["names"])
        try:
            if self.problem is not None:
                raise self.problem
            messages = [os.fsdecode(text) for text in row["errors"]]
            if any(messages) and not self.skip:
                raise DataError(next(text for text in messages if text))
            rows = self._score(row["images"], names, messages)
            done = commit_block(self.folder / BLOCKS, Block(int(row["block"]), str(row["file"]), names), rows)
        except SemflowError as error:
            return {"kind": type(error).__name__, "message": printable(str(error))}
        return {"kind": "", "message": json.dumps(done._asdict())}

    def _check(self, manifest: dict[str, Any]) -> None:
        if read_manifest(self.folder) != manifest:
            raise DataError(
                f"output {self.folder}: on {socket.gethostname()} it is another folder than where the command runs; "
                "choose one that all machines share"
            )

    def _score(self, images: NDArray[np.uint8], names: Sequence[str], messages: list[str]) -> dict[str, list[Any]]:
        """The columns of a block; None where an image could not be read."""
        whole = [index for index, message in enumerate(messages) if not message]
        rows: dict[str, list[Any]] = {key: [None] * len(names) for key in ("score", "p_value", "is_anomalous")}
        for start in range(0, len(whole), self.batch_size):
            indices = whole[start : start + self.batch_size]
            batch = torch.from_numpy(images[indices]).float().div_(255.0)
            prediction = self.predictor.predict(batch.to(self.predictor.device))
            for name, column in rows.items():
                values = getattr(prediction, name)  # None where nothing is calibrated
                for index, value in zip(indices, [] if values is None else values.cpu().tolist(), strict=False):
                    column[index] = value
        for name, score in zip(names, rows["score"], strict=True):
            if score is not None and not math.isfinite(score):
                raise ConfigError(f"{name}: its score is {score}; the model is broken, fit it again")
        return {**rows, "error": messages}
