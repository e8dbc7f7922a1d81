"""Latents of normal images, computed once for several passes."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from semflow._memory import per_batch

from .interface import NormalBatch
from .likelihood import Latents
from .passes import FittingPasses


class Encoded:
    """Batches with their latents, so that `fit_base` and then `fit_score` encode each one only once.

    Args:
        model: detector, whose flows must not change between the passes.
        batches: batches for several passes; those without feature maps get no latents.
        limit: bytes of latents. If those of all batches do not fit, each pass computes them.

    Example:
        >>> from semflow.recipes import Backbone, memory_flow
        >>> detector = memory_flow(Backbone("resnet18", "random", (4, 8, 16)), 64).eval()
        >>> images = torch.rand(2, 3, 64, 64)
        >>> batches = Encoded(detector, [NormalBatch(images, detector.feature_maps(images))])
        >>> detector.fit_base(batches)
        >>> len(next(iter(batches)).latents), len(detector.fit_score(batches).scores)
        (3, 2)
    """

    def __init__(self, model: FittingPasses, batches: Iterable[NormalBatch], limit: int = 2**28) -> None:
        self.model, self.batches, self.limit = model, batches, limit
        self._kept: dict[int, Sequence[Latents]] = {}

    def __iter__(self) -> Iterator[NormalBatch]:
        for number, batch in enumerate(self.batches):
            if self.limit > 0 and batch.maps is not None and number not in self._kept:
                self._kept[number] = self._encode(batch, batch.maps)
                self.limit -= sum(x.nbytes for scale in self._kept[number] for x in (scale.z, scale.log_det))
            if self.limit <= 0:
                self._kept.clear()
            yield batch._replace(latents=self._kept.get(number))

    @per_batch
    @torch.no_grad()
    def _encode(self, batch: NormalBatch, maps: Sequence[Tensor]) -> Sequence[Latents]:
        return self.model.encode_maps(maps, self.model.see(batch.images).images)
