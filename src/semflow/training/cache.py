"""The frozen backbone's maps of the normal training images, computed once where nothing changes the images."""

import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from semflow.data import Batch
from semflow.errors import DataError
from semflow.features import FeatureExtractor
from semflow.files import hash_parts, hash_tensor

from .distributed import ALONE, Processes
from .loading import Parts

__all__ = ["NormalImages", "unseen"]

DIGITS, LARGEST_COUNT = 12, 2**16


class NormalImages:
    """Batches of (images, feature maps) in the order of the data set, as often as one iterates over them.

    The maps are kept after the first pass if all of them fit into `limit` bytes on the device, and computed anew in
    each pass otherwise. Of several processes each makes the pass over the batches that were dealt to it, and all keep
    the maps of all.

    Args:
        features: the frozen backbone.
        loader: of the normal images, in their order; of `dealt_batches` where there are several processes.
        device: where the maps are computed and kept.
        limit: bytes.
        processes: that the batches are dealt to.

    `keep = False` lets later passes keep nothing new: there is none to come.
    """

    def __init__(
        self,
        features: FeatureExtractor,
        loader: DataLoader[Batch],
        device: torch.device,
        limit: int = 2**31,
        processes: Processes = ALONE,
    ) -> None:
        self.features, self.loader, self.device, self.limit = features, loader, device, limit
        self.processes = processes
        self.count = len(cast(Sized, loader.dataset))
        self.keep = True
        self._batches = cast(Parts, loader.batch_sampler).batches
        self._kept: list[Tensor] = []
        self._full = False
        self._fingerprint = ""
        self._fingerprints: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[tuple[Tensor, list[Tensor]]]:
        digests = []
        for number, (positions, batch) in enumerate(zip(self._batches, self.loader, strict=True)):
            if not self._fingerprint:
                digests.append([hash_tensor(image) for image in batch.images])
            images = batch.images.to(self.device)
            span = slice(positions[0], positions[-1] + 1)
            if self._full:
                yield images, [kept[span] for kept in self._kept]
            else:
                maps = self.features(images)
                if number == 0:
                    self._kept = self._room([(tuple(x.shape[1:]), x.dtype) for x in maps])
                for kept, x in zip(self._kept, maps, strict=False):
                    kept[span] = x
                yield images, maps
        self._take(digests)
        self._share()

    def fill(self) -> None:
        """Make a pass now, if none has been made and the maps fit."""
        if not self._full:
            for _ in self:
                if not self._kept and self.processes.count == 1:
                    return

    def maps(self, indices: Sequence[int]) -> list[Tensor] | None:
        """The kept maps of some images, by their place in the data set; None where they are not kept."""
        if not self._full:
            return None
        index = torch.as_tensor(indices, device=self.device, dtype=torch.int64)
        return [kept[index] for kept in self._kept]

    def fingerprint(self) -> str:
        """SHA-256 over those of the images, in their order: 64 hexadecimal digits that tell these images from others.

        It comes with a pass over the images, and costs one where there has been none.
        """
        if not self._fingerprint:
            self._take([[hash_tensor(image) for image in batch.images] for batch in self.loader])
        return self._fingerprint

    def fingerprints(self) -> tuple[str, ...]:
        """Return the first 12 hexadecimal digits of each image's SHA-256, sorted; none for more than 65,536 images."""
        self.fingerprint()
        return self._fingerprints

    def _take(self, digests: list[list[str]]) -> None:
        if not self._fingerprint:
            found = [digest for batch in self.processes.gather(digests) for digest in batch]
            self._fingerprint = hash_parts(found)
            self._fingerprints = tuple(sorted(x[:DIGITS] for x in found)) if len(found) <= LARGEST_COUNT else ()

    def _share(self) -> None:
        """Each batch's maps from the process that has computed them to all; then the cache is full."""
        if not self._full and self.processes.count > 1:
            layouts = self.processes.gather_all([(tuple(x.shape[1:]), x.dtype) for x in self._kept])
            if not self._kept:  # no batch was dealt to this process, or the maps did not fit, then for none
                self._kept = self._room(next((layout for layout in layouts if layout), []))
            dealt = self.processes.gather_all([(positions[0], positions[-1] + 1) for positions in self._batches])
            for owner, spans in enumerate(dealt):
                for start, stop in spans:
                    # Rows of a channels_last tensor, as the contiguous memory that they are.
                    self.processes.spread((kept[start:stop].permute(0, 2, 3, 1) for kept in self._kept), owner)
        self._full = bool(self._kept)

    def _room(self, layout: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> list[Tensor]:
        """Tensors for the maps of all images, given shape and type of an image's; none if they are too large."""
        size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout)
        if not self.keep or size * self.count > self.limit:
            return []
        last = torch.channels_last
        return [
            torch.empty((self.count, *shape), dtype=dtype, device=self.device, memory_format=last)
            for shape, dtype in layout
        ]


def unseen(batches: Iterable[Batch], fingerprints: Iterable[str]) -> Iterator[Batch]:
    """Yield batches of images that are not among the trained ones, whose scores are too low for calibration.

    Raises:
        DataError: If an image has one of the fingerprints.
    """
    known = set(fingerprints)
    for batch in batches:
        for image, path in zip(batch.images, batch.paths, strict=True):
            if known and hash_tensor(image)[:DIGITS] in known:
                raise DataError(
                    f"{path} must not be a training image, but got one; remove all training images, or every threshold "
                    "is too low"
                )
        yield batch
