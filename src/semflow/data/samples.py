"""Samples of a dataset, and batches of them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from semflow.errors import ShapeError

__all__ = ["Batch", "Sample", "collate"]


class Sample(NamedTuple):
    """One image with its label, mask and path.

    Attributes:
        image: (3, H, W) float32, RGB in [0, 1].
        label: 0 normal, 1 anomalous, -1 unknown.
        anomaly_mask: (H, W) bool, true where anomalous; None if the pixels are not labeled.
        path: The image file; of an image packed in a file, see `Record`.

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
    """Stacked samples of one image size.

    Attributes:
        images: (B, 3, H, W) float32.
        labels: (B,) int64.
        anomaly_masks: (B, H, W) bool, or None if any mask is None.
        paths: One per image.

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
    """Stack samples to a batch; pass this function to a DataLoader as `collate_fn`.

    Args:
        samples: At least one sample, all of one image size.

    Raises:
        ShapeError: If `samples` is empty or the image sizes differ.

    Example:
        >>> batch = collate([Sample(torch.zeros(3, 4, 4), 0, torch.zeros(4, 4, dtype=torch.bool), "a.png")] * 2)
        >>> batch.images.shape, batch.labels.tolist(), batch.paths
        (torch.Size([2, 3, 4, 4]), [0, 0], ('a.png', 'a.png'))
    """
    if not samples:
        raise ShapeError("samples must contain at least one sample, but got none")
    first = samples[0].image.shape
    for sample in samples:
        if sample.image.shape != first:
            raise ShapeError(
                f"samples must have images of one size, but got {tuple(first)} ({samples[0].path}) "
                f"and {tuple(sample.image.shape)} ({sample.path}); load all images at one size"
            )
    masks = [sample.anomaly_mask for sample in samples if sample.anomaly_mask is not None]
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        labels=torch.tensor([sample.label for sample in samples], dtype=torch.int64),
        anomaly_masks=torch.stack(masks) if len(masks) == len(samples) else None,
        paths=tuple(sample.path for sample in samples),
    )
