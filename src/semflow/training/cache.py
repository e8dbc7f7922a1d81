"""Feature maps of the normal training images, computed once."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from semflow._devices import to_device
from semflow._memory import trimming
from semflow.data import Batch
from semflow.data.samples import hash_image
from semflow.detectors import NormalBatch
from semflow.errors import DataError
from semflow.files import hash_parts

from .cutting import CACHE, TrainingTiles
from .distributed import ALONE, Processes
from .kept_maps import KeptMaps, Layout
from .labels import check_normal
from .loading import Parts

DIGITS, LARGEST_COUNT = 12, 2**16


class NormalImages:
    """Batches of images and feature maps in the order of the data set, for any number of passes.

    The first pass keeps the maps, see `KeptMaps`, if all of them fit into `limit` bytes and `keep` is True; otherwise
    every pass computes them, or takes those that `known` returns for positions of images. The first pass raises
    DataError for an anomalous image, unless `allow_anomalous` is True.
    With several processes, each computes the maps of the batches of its loader (see `dealt_batches`), and all keep the
    maps of all. Of tiles, labels and digests are those of their images, and indices count the images.
    """

    def __init__(
        self,
        features: Callable[[Tensor], list[Tensor]],
        loader: DataLoader[Batch],
        device: torch.device,
        limit: int = 2**31,
        processes: Processes = ALONE,
        allow_anomalous: bool = False,
        known: Callable[[Sequence[int]], list[Tensor] | None] | None = None,
        tiles: TrainingTiles | None = None,
    ) -> None:
        self.known, self.tiles = known, tiles
        self.features, self.loader, self.device = features, loader, device
        self.limit = limit if tiles is None else min(limit, CACHE)
        self.allow_anomalous = allow_anomalous
        self.processes = processes
        self.count = len(cast(Sized, loader.dataset))
        self.keep = known is None
        self.size = (0, 0)  # of the images, after the first pass
        self._batches = cast(Parts, loader.batch_sampler).batches
        self._kept: KeptMaps | None = None
        self._full = self._passed = False
        self._digests: list[str] = []

    def __iter__(self) -> Iterator[NormalBatch]:
        digests, images_of = [], None if self.tiles is None else self.tiles.images.to(self.device)
        self._digests = self._digests or self._of_tiles()
        for number, (positions, batch) in enumerate(trimming(zip(self._batches, self.loader, strict=True))):
            if not self._digests:
                digests.append(self._looked_at(batch))
            images = to_device(batch.images, self.device)
            self.size = (images.shape[2], images.shape[3])
            indices = to_device(torch.tensor(positions), self.device)
            indices = indices if images_of is None else images_of[indices]
            if self._full and self._kept is not None:
                yield NormalBatch(images, self._kept.span(positions[0], positions[-1] + 1), indices)
            else:
                found = None if self.known is None else self.known(positions)
                maps = self.features(images) if found is None else found
                if number == 0 and not self._passed and self._kept is None:  # a full disk is not filled again
                    self._kept = self._allocate([(tuple(x.shape[1:]), x.dtype) for x in maps])
                if self._kept is not None:
                    self._kept.put(positions[0], maps)
                yield NormalBatch(images, maps, indices)
        self._add_digests(digests)
        self._share()

    def fill(self) -> None:
        """Compute the maps now, unless they are kept already or do not fit."""
        if not self._passed:
            for _ in self:
                if (self._kept is None or self._kept.lost) and self.processes.count == 1:
                    return

    def maps(self, indices: Sequence[int]) -> list[Tensor] | None:
        """Return the kept maps of images by their index in the data set, or None if maps are not kept."""
        return self._kept.get(indices) if self._full and self._kept is not None else None

    def fingerprint(self) -> str:
        """Return the SHA-256 of all images in order; costs a pass over the images if there has been none."""
        self._digests = self._digests or self._of_tiles()
        if not self._digests:
            self._add_digests([self._looked_at(batch) for batch in self.loader])
        return hash_parts(self._digests)

    def fingerprints(self) -> tuple[str, ...]:
        """Return the first 12 hexadecimal digits of each image's SHA-256, sorted; none for more than 65,536 images."""
        self.fingerprint()
        return tuple(sorted(x[:DIGITS] for x in self._digests)) if self.count <= LARGEST_COUNT else ()

    def _of_tiles(self) -> list[str]:
        """Cut the tiles, which checks labels, and return the digests of their images; none without tiles."""
        return [] if self.tiles is None else self.tiles.digests

    def _looked_at(self, batch: Batch) -> list[str]:
        """Check the labels of a batch, and return the digests of its images."""
        if not self.allow_anomalous:
            check_normal(batch)
        return [hash_image(image) for image in batch.images]

    def _add_digests(self, digests: list[list[str]]) -> None:
        if not self._digests:
            self._digests = [digest for batch in self.processes.gather(digests) for digest in batch]

    def _share(self) -> None:
        """Send each batch's maps from the process that computed them to all others, after the first pass."""
        if self._passed:
            return
        self._passed = True
        if self.processes.count > 1:
            layouts = self.processes.gather_all(None if self._kept is None else self._kept.layouts)
            if self._kept is None:  # this process has no batch, or the maps fit for no process
                self._kept = self._allocate(next((layout for layout in layouts if layout), []))
            kept = self._kept
            dealt = self.processes.gather_all([(positions[0], positions[-1] + 1) for positions in self._batches])
            for owner, spans in enumerate(dealt) if kept is not None else ():
                for start, stop in spans:
                    maps = cast(KeptMaps, kept).span(start, stop)
                    # Rows of a channels_last tensor are contiguous in this order.
                    self.processes.spread((x.permute(0, 2, 3, 1) for x in maps), owner)
                    cast(KeptMaps, kept).put(start, maps)
        lost = self.processes.gather_all(self._kept is None or self._kept.lost)
        self._full = not any(lost)

    def _allocate(self, layouts: Sequence[Layout]) -> KeptMaps | None:
        """Return room for the maps of all images, or None if they do not fit."""
        size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layouts)
        if not self.keep or not size or size * self.count > self.limit:
            return None
        return KeptMaps(self.count, layouts, self.device)


def unseen(batches: Iterable[Batch], fingerprints: Iterable[str], digests: list[str] | None = None) -> Iterator[Batch]:
    """Yield batches, and raise DataError for the first image with one of the fingerprints; collect the digests."""
    known = set(fingerprints)
    for batch in batches:
        for image, path in zip(batch.images, batch.paths, strict=True):
            digest = hash_image(image)
            if digest[:DIGITS] in known:
                raise DataError(f"{path} must not be a training image, but got one; remove all of them")
            if digests is not None:
                digests.append(digest)
        yield batch
