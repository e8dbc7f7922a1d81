"""Features minus their nearest normal features (ResAD, Yao et al., NeurIPS 2024)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from semflow.functional import from_locations, nearest, to_locations

from .plain import PlainFlow

STORED = 4000  # vectors for each category and scale


class ResidualFlow(PlainFlow):
    """The plain flow on residuals, x minus the nearest of stored normal features of all categories.

    The residuals of training images leave the vectors of the image itself out. Near a feature the nearest one is the
    same, so the log-det of the transform is 0, but several features may have the same residual.

    Args:
        channels: of the feature maps.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__(channels)
        self.stored: list[Tensor] = []
        self.images: list[Tensor] = []  # of which each vector is

    def prepare(self, maps: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
        """Store vectors of all categories, and return the residuals of the training images."""
        self.store(maps, labels)
        return super().prepare(self.residuals(maps, torch.arange(len(labels))), labels)

    def store(self, maps: Sequence[Tensor], labels: Tensor) -> None:
        """Store random vectors of each category."""
        self.stored, self.images = [], []
        for x in maps:
            vectors, size = to_locations(x), x.shape[2] * x.shape[3]
            images = torch.arange(len(x)).repeat_interleave(size)
            kept = [rows[torch.randperm(len(rows))[:STORED]] for rows in of_each(labels[images])]
            rows = torch.cat(kept)
            self.stored.append(vectors[rows])
            self.images.append(images[rows])

    def refer(self, maps: Sequence[Tensor]) -> None:
        """Store vectors of the category that is tested next, in the place of all others."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.store(maps, torch.zeros(len(maps[0]), dtype=torch.int64))

    def seen(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the residuals of other images."""
        return self.residuals(maps)

    @torch.no_grad()
    def residuals(self, maps: Sequence[Tensor], numbers: Tensor | None = None) -> list[Tensor]:
        """Return the residuals of images, without the vectors of those with their numbers."""
        found = []
        for x, stored, images in zip(maps, self.stored, self.images, strict=True):
            size = x.shape[2], x.shape[3]
            vectors = to_locations(x)
            own = None if numbers is None else numbers.repeat_interleave(size[0] * size[1])
            _, rows = nearest(vectors, stored, exclude=own, memory_ids=None if own is None else images)
            found.append(from_locations(vectors - stored[rows[:, 0]], size))
        return found


class ResidualGaussian(ResidualFlow):
    """A normal distribution of each channel's residuals, the same for all locations, in the place of the flow."""

    trains = False

    def encode(self, maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return the standardized residuals (B, C, H, W) and log-dets (B, H, W) of each scale."""
        return [self.standardizer(scale)(x) for scale, x in enumerate(maps)]


def of_each(labels: Tensor) -> list[Tensor]:
    """Return the rows of each label."""
    return [(labels == label).nonzero()[:, 0] for label in labels.unique()]
