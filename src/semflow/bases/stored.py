"""Latents of normal images, collected for bases that store them."""

from typing import Self

import torch
from torch import Tensor

from semflow.errors import DataError, ShapeError
from semflow.functional import to_locations
from semflow.functional.inverse_gamma import narrow


class StoredLatents:
    """Latents of normal images on the CPU, with the index of the image of each vector.

    Example:
        >>> latents = StoredLatents()
        >>> latents.update(torch.zeros(2, 8, 4, 4))
        >>> latents.vectors.shape, latents.images.bincount().tolist()
        (torch.Size([32, 8]), [16, 16])
    """

    def __init__(self) -> None:
        self.count = 0
        self._vectors: list[Tensor] = []
        self._images: list[Tensor] = []
        self._features: list[Tensor] = []

    @torch.no_grad()
    def update(self, z: Tensor, features: Tensor | None = None) -> None:
        """Add the latents (B, C, H, W) of the next images and, if vectors are chosen by them, features (B, D, H, W)."""
        if z.dim() != 4:
            raise ShapeError(f"z must be (B, C, H, W), but got {tuple(z.shape)}")
        if features is not None and (len(features), features.shape[2:]) != (len(z), z.shape[2:]):
            raise ShapeError(f"features must have the locations of z {tuple(z.shape)}, but got {tuple(features.shape)}")
        if not z.isfinite().all():
            raise DataError("z must be finite, but got inf or NaN")
        self._vectors.append(to_locations(narrow(z)).cpu())
        images = torch.arange(self.count, self.count + len(z))
        self._images.append(images.repeat_interleave(z.shape[2] * z.shape[3]))
        if features is not None:
            self._features.append(to_locations(narrow(features)).cpu())
        self.count += len(z)

    def merge(self, other: Self) -> None:
        """Add the latents of later images."""
        self._vectors += other._vectors
        self._images += [images + self.count for images in other._images]
        self._features += other._features
        self.count += other.count

    @property
    def vectors(self) -> Tensor:
        """All vectors (N, C)."""
        return _joined(self._vectors)

    @property
    def images(self) -> Tensor:
        """Index of the image of each vector, (N,)."""
        return _joined(self._images)

    @property
    def features(self) -> Tensor | None:
        """Features of the locations (N, D), or None if they were not given."""
        if self._features and sum(map(len, self._features)) != sum(map(len, self._vectors)):
            raise ShapeError("features must be given with all latents or with none, but got only some")
        return _joined(self._features) if self._features else None


def _joined(parts: list[Tensor]) -> Tensor:
    if not sum(map(len, parts)):
        raise ShapeError("accumulator must hold the latents of at least one image, but got none")
    if len(parts) > 1:
        parts[:] = [torch.cat(parts)]  # not twice in memory
    return parts[0]
