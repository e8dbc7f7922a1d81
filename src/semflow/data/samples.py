"""What a data set yields, and how samples become a batch."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from semflow.errors import ShapeError

__all__ = ["Batch", "Sample", "collate"]


class Sample(NamedTuple):
    """One image with what is known about it.

    Fields:
        image: (3, H, W) float32, RGB in [0, 1].
        label: 0 normal, 1 anomalous, -1 unknown.
        anomaly_mask: (H, W) bool, true where anomalous; None when the pixels are not labelled.
        path: the file it was read from, and after a `#` where in the file if it holds many (see `Record`).

    Example:
        >>> sample = Sample(torch.rand(3, 8, 8), 1, torch.ones(8, 8, dtype=torch.bool), "crack/000.png")
        >>> sample.label, sample.anomaly_mask.float().mean().item()
        (1, 1.0)
    """

    image: Tensor
    label: int
    anomaly_mask: Tensor | None
    path: str


class Batch(NamedTuple):
    """Samples of one size, stacked.

    Fields:
        images: (B, 3, H, W) float32.
        labels: (B,) int64.
        anomaly_masks: (B, H, W) bool, or None if any sample has none.
        paths: one per image.

    Example:
        >>> images = torch.rand(2, 3, 8, 8)
        >>> batch = collate([Sample(images[0], 0, None, "a.png"), Sample(images[1], 1, None, "b.png")])
        >>> batch.images.shape, batch.labels.tolist(), batch.anomaly_masks, batch.paths
        (torch.Size([2, 3, 8, 8]), [0, 1], None, ('a.png', 'b.png'))
    """

    images: Tensor
    labels: Tensor
    anomaly_masks: Tensor | None
    paths: tuple[str, ...]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a batch; the `collate_fn` for a DataLoader.

    >>> batch = collate([Sample(torch.zeros(3, 4, 4), 0, torch.zeros(4, 4, dtype=torch.bool), "a.png")] * 2)
    >>> batch.images.shape, batch.labels.tolist(), batch.paths
    (torch.Size([2, 3, 4, 4]), [0, 0], ('a.png', 'a.png'))

    Raises:
        ShapeError: no sample, or images of different sizes.
    """
    if not samples:
        raise ShapeError("collate: expected at least one sample, but got none.")
    first = samples[0].image.shape
    for sample in samples:
        if sample.image.shape != first:
            raise ShapeError(
                f"collate: expected images of one size, but got {tuple(first)} ({samples[0].path}) "
                f"and {tuple(sample.image.shape)} ({sample.path}); load all images at one size."
            )
    masks = [sample.anomaly_mask for sample in samples if sample.anomaly_mask is not None]
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        labels=torch.tensor([sample.label for sample in samples], dtype=torch.int64),
        anomaly_masks=torch.stack(masks) if len(masks) == len(samples) else None,
        paths=tuple(sample.path for sample in samples),
    )
