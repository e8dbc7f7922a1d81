"""The frozen backbone's maps of the normal training images, computed once where nothing changes the images."""

from collections.abc import Iterator, Sequence, Sized
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..data import Batch
from ..features import FeatureExtractor

__all__ = ["NormalImages"]


class NormalImages:
    """Batches of (images, feature maps) in the order of the data set, as often as one iterates over them.

    The maps are kept after the first pass if all of them fit into `limit` bytes on the device, and computed anew in
    each pass otherwise.

    Args:
        features: the frozen backbone.
        loader: of the normal images, in their order.
        device: where the maps are computed and kept.
        limit: bytes.

    `keep = False` lets later passes keep nothing new: there is none to come.
    """

    def __init__(
        self, features: FeatureExtractor, loader: DataLoader[Batch], device: torch.device, limit: int = 2**31
    ) -> None:
        self.features, self.loader, self.device, self.limit = features, loader, device, limit
        self.count = len(cast(Sized, loader.dataset))
        self.keep = True
        self._kept: list[Tensor] = []
        self._full = False

    def __iter__(self) -> Iterator[tuple[Tensor, list[Tensor]]]:
        start = 0
        for batch in self.loader:
            images = batch.images.to(self.device)
            stop = start + len(images)
            if self._full:
                yield images, [kept[start:stop] for kept in self._kept]
            else:
                maps = self.features(images)
                if start == 0:
                    self._kept = self._room(maps)
                for kept, x in zip(self._kept, maps, strict=False):
                    kept[start:stop] = x
                yield images, maps
            start = stop
        self._full = bool(self._kept)

    def fill(self) -> None:
        """Make a pass now, if none has been made and the maps fit."""
        if not self._full:
            for _ in self:
                if not self._kept:
                    return

    def maps(self, indices: Sequence[int]) -> list[Tensor] | None:
        """The kept maps of some images, by their place in the data set; None where they are not kept."""
        if not self._full:
            return None
        index = torch.as_tensor(indices, device=self.device)
        return [kept[index] for kept in self._kept]

    def _room(self, maps: Sequence[Tensor]) -> list[Tensor]:
        if not self.keep or sum(x[0].numel() * x.element_size() for x in maps) * self.count > self.limit:
            return []
        return [
            torch.empty((self.count, *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
            for x in maps
        ]
