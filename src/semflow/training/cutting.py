"""Tiles of training images, cut once and kept in a temporary file."""

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from semflow._channels import has_region
from semflow._tiling import Tiles
from semflow.bases import Memory
from semflow.data import Sample
from semflow.data.samples import hash_image
from semflow.detectors import Detector
from semflow.errors import ConfigError
from semflow.files import writing

from .config import TrainingConfig
from .labels import check_sample
from .workers import loader

MOST = 512
"""Tiles that a detector is fitted to, if there are not more images."""
STORED = 10_000
"""Vectors that a memory stores at most if its size is a share of all locations."""
COLLECTED = 2**27
"""Bytes of the vectors that a memory collects before it reduces them, which takes three times as much more."""
CACHE = 2**30
"""Bytes of the feature maps of tiles that are kept."""
PIXELS = 2**18
"""Pixels of the tiles that are computed at once while a detector is fitted: one tile of 512 px."""


class _Kept(NamedTuple):
    """A tile in the file: where it starts, its channels, and whether its pixels are bytes."""

    start: int
    channels: int
    whole: bool
    path: str


class TrainingTiles(Dataset[Sample]):
    """Tiles of normal images: the same number of each image, and of all positions in turn.

    All tiles of an image, if it has few, and otherwise so many that there are about `MOST` tiles of all images. The
    images are read once, when the first tile is asked for.

    Args:
        dataset: images of any size; the first one determines how many tiles each has.
        tiles: size and overlap.
        workers: processes that read the images.
        allow_anomalous: accept images with an anomalous label or mask.

    Attributes:
        each: tiles per image; those of image i are i * each and following.

    Example:
        >>> images = [Sample(torch.rand(3, 40, 70), 0, None, f"{i}.png") for i in range(3)]
        >>> tiles = TrainingTiles(images, Tiles(32, 0))
        >>> len(tiles), tiles.each, tiles[7].path, tiles[7].image.shape
        (18, 6, '1.png', torch.Size([3, 32, 32]))
    """

    def __init__(self, dataset: Dataset[Any], tiles: Tiles, workers: int = 0, allow_anomalous: bool = False) -> None:
        self.dataset, self.tiles, self.workers, self.allow_anomalous = dataset, tiles, workers, allow_anomalous
        self.count = len(cast(Sized, dataset))
        places = tiles.places(*dataset[0].image.shape[-2:])
        self.each = min(len(places), max(1, MOST // self.count))
        self._file = Path()
        self._kept: list[_Kept] = []
        self._digests: list[str] = []

    @property
    def images(self) -> Tensor:
        """The image of each tile, (n,) int64."""
        return torch.arange(self.count).repeat_interleave(self.each)

    @property
    def digests(self) -> list[str]:
        """SHA-256 of each image."""
        self.cut()
        return self._digests

    def of(self, images: Sequence[int]) -> list[int]:
        """Return the positions of all tiles of images."""
        return [image * self.each + k for image in images for k in range(self.each)]

    def __len__(self) -> int:
        return self.count * self.each

    def __getitem__(self, index: int) -> Sample:
        self.cut()
        kept, side = self._kept[index], self.tiles.size
        kind = np.dtype(np.uint8 if kept.whole else np.float32)
        values = np.fromfile(self._file, kind, kept.channels * side * side, offset=kept.start)
        image = torch.from_numpy(values.reshape(kept.channels, side, side))
        return Sample(image.float().div_(255.0) if kept.whole else image, 0, None, kept.path)

    def cut(self) -> None:
        """Read the images and write their tiles to a file, unless that has been done."""
        if self._kept:
            return
        kept: list[_Kept] = []
        digests: list[str] = []
        with self._writing():
            folder = tempfile.mkdtemp(prefix="semflow-")
            weakref.finalize(self, _remove, folder, os.getpid())
            self._file = Path(folder) / "tiles"
            file = self._file.open("wb")
        with file:
            for (found,) in loader(_Cuts(self), list, self.workers, batch_size=1):
                digests.append(found.digest)
                for values in found.tiles:
                    kept.append(_Kept(file.tell(), len(values), values.dtype == np.uint8, found.path))
                    with self._writing():
                        file.write(values.tobytes())
                        file.flush()  # so that no error waits for the end
        self._kept, self._digests = kept, digests

    def _writing(self) -> AbstractContextManager[None]:
        return writing(Path(tempfile.gettempdir()), "set TMPDIR to a folder with space for the tiles")

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a process that loads tiles from the same file."""
        return {**vars(self), "dataset": None}


def _remove(folder: str, owner: int) -> None:
    """Remove a folder in the process that made it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def at_once(tiles: Tiles | None, images: int) -> int:
    """Return how many of a number of images to compute at once, which bounds memory if they are tiles.

    >>> at_once(Tiles(256), 32), at_once(Tiles(1024), 32), at_once(None, 32)
    (4, 1, 32)
    """
    return images if tiles is None else max(1, min(images, PIXELS // tiles.size**2))


def in_chunks(detector: Detector, training: TrainingConfig, tiles: Tiles | None, least: int = 1) -> TrainingConfig:
    """Return settings that make the same steps, each computed a few tiles at a time, but at least `least`.

    Settings stay as they are if the loss or a batch norm of the flows depends on all tiles of a batch.

    >>> from semflow.recipes import Backbone, fastflow
    >>> training = TrainingConfig(batch_size=30)
    >>> in_chunks(fastflow(Backbone("resnet18", "random", (8,)), 256), training, Tiles(256)).accumulate
    10
    """
    joint = any(isinstance(module, _BatchNorm) for module in detector.flows.modules())
    objective = detector.objective
    if joint or objective.squash or objective.boundary or training.tilt is not None or training.locations is not None:
        return training
    count, most = training.batch_size, max(least, at_once(tiles, training.batch_size))
    size = max((k for k in range(least, most + 1) if count % k == 0), default=count)
    return replace(training, batch_size=size, accumulate=training.accumulate * (count // size))


class _Cut(NamedTuple):
    digest: str
    path: str
    tiles: list[NDArray[Any]]


class _Cuts(Dataset[_Cut]):
    """The tiles of each image, in bytes if that loses nothing."""

    def __init__(self, of: TrainingTiles) -> None:
        self.dataset, self.tiles, self.each, self.allow_anomalous = of.dataset, of.tiles, of.each, of.allow_anomalous
        self.count = of.count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> _Cut:
        sample = self.dataset[index]
        if not self.allow_anomalous:
            check_sample(sample)
        image, places = sample.image.numpy(), self.tiles.places(*sample.image.shape[-2:])
        if has_region(len(image)):
            places = [x for x in places if (self.tiles.cut(image, x)[-1] > 0.5).any()] or places
        # One order for all images, in which the next image goes on where this one ends: all positions are as frequent.
        order = np.random.default_rng(len(places)).permutation(len(places))
        chosen = [places[order[(index * self.each + k) % len(places)]] for k in range(self.each)]
        return _Cut(hash_image(sample.image), sample.path, [_in_bytes(self.tiles.cut(image, x)) for x in chosen])


def _in_bytes(values: NDArray[np.float32]) -> NDArray[Any]:
    """Return pixels k / 255 as bytes, and others unchanged."""
    levels = np.rint(values * np.float32(255.0)).clip(0, 255).astype(np.uint8)
    exact = np.array_equal(levels.astype(np.float32) / np.float32(255.0), values)
    return levels if exact else np.ascontiguousarray(values)


def take_tiles(detector: Detector, tiles: Tiles | None, calibration: object = None) -> Tiles | None:
    """Record the tiles to fit a detector to, by default its own, and return them.

    Args:
        detector: detector to fit.
        tiles: tiles, or None for its own.
        calibration: argument of `fit`.

    Raises:
        ConfigError: If the detector or the calibration cannot take them.

    Example:
        >>> from semflow.recipes import Backbone, padim
        >>> take_tiles(padim(Backbone("test_efficientnet", "random", (4, 8, 16)), 32), Tiles(32))
        Traceback (most recent call last):
            ...
        semflow.errors.ConfigError: tiles must be None for a PositionGaussian, which needs whole images, but got ...
    """
    made = detector.provenance
    tiles = made.tiles if tiles is None else tiles
    if tiles is None:
        return None
    for base in detector.fitted_bases.values():
        if not base.takes_tiles:
            raise ConfigError(
                f"tiles must be None for a {type(base).__name__}, which needs whole images, but got {tiles}; use "
                "another recipe, such as patchcore"
            )
    if isinstance(calibration, str):
        raise ConfigError(
            f"calibration must be a number or other images with tiles, but got {calibration!r}; hold some images out"
        )
    if made.recipe and made.image_size != tiles.size:
        raise ConfigError(
            f"size of tiles must be the image_size of this {made.recipe}, {made.image_size}, but got {tiles.size}; "
            f"build the detector with image_size={tiles.size}"
        )
    if detector.region is not None:
        raise ConfigError("tiles must be None with a region of all images, but got both; give each image its region")
    if made.fingerprints and made.tiles != tiles:
        raise ConfigError(f"tiles must be those that the detector was fitted to, {made.tiles}, but got {tiles}")
    detector.provenance = replace(made, tiles=tiles, image_size=tiles.size)
    return tiles


@contextmanager
@torch.no_grad()
def bounded(detector: Detector, tiles: TrainingTiles | None) -> Iterator[None]:
    """Bound what memories collect and store while a detector is fitted to tiles, which have many locations."""
    if tiles is None:
        yield
        return
    memories = {k: base for k, base in detector.fitted_bases.items() if isinstance(base, Memory)}
    before = {k: (memory.size, memory.limit_bytes) for k, memory in memories.items()}
    side = tiles.tiles.size
    maps = detector.features(detector.reference.new_zeros(1, 3, side, side)) if memories else ()
    for k, memory in memories.items():
        if memory.size is None or isinstance(memory.size, float):
            locations = len(tiles) * maps[k].shape[2] * maps[k].shape[3]
            memory.size = min(STORED, max(1, int(locations * (memory.size or 1))))
        width = 4 * maps[k].shape[1] * (2 if memory.uses_features else 1)
        most = max(COLLECTED, 4 * memory.size * width)
        memory.limit_bytes = most if memory.limit_bytes is None else min(memory.limit_bytes, most)
    try:
        yield
    finally:
        for k, memory in memories.items():
            memory.size, memory.limit_bytes = before[k]
