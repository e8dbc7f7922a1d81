"""Means and covariances of latents at every location, summed over images."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from semflow.errors import DataError, ShapeError
from semflow.functional.inverse_gamma import wide

CHUNK = 2**22  # elements of the matrices that are factorized at once


class PositionMoments:
    """Mean and sum of squared deviations of latents over images, at every location, in float64.

    Maps are added in blocks of 32 images, which is faster than one by one and independent of the batches in which they
    arrive. The sums take H W C^2 numbers.

    Example:
        >>> moments = PositionMoments()
        >>> moments.update(torch.randn(8, 3, 4, 5))
        >>> mean, squares = moments.result()
        >>> moments.count, mean.shape, squares.shape
        (8, torch.Size([4, 5, 3]), torch.Size([4, 5, 3, 3]))
    """

    block: ClassVar[int] = 32

    def __init__(self) -> None:
        self._folded = 0
        self._sums: tuple[Tensor, Tensor] | None = None
        self._waiting: list[Tensor] = []
        self._inside: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of images."""
        return self._folded + sum(map(len, self._waiting))

    @torch.no_grad()
    def update(self, z: Tensor, inside: Tensor | None = None) -> None:
        """Add latents (B, C, H, W) of the next B images, all with one region (B, H, W)."""
        if inside is not None or self._inside is not None:
            self._check_region(torch.ones_like(z[:, 0]) if inside is None else inside)
        if z.dim() != 4:
            raise ShapeError(f"z must be (B, C, H, W), but got {tuple(z.shape)}")
        size = self._size()
        if size is not None and tuple(z.shape[1:]) != size:
            raise ShapeError(f"z must have the shape of other images, {size}, but got {tuple(z.shape[1:])}")
        if len(z):
            self._waiting.append(z.detach())
        if self.count - self._folded >= self.block:
            blocks = torch.cat(self._waiting).split(self.block)
            self._waiting = [z.clone() for z in blocks if len(z) < self.block]  # at most the last
            for full in blocks[: len(blocks) - len(self._waiting)]:
                self._add_images(full)

    @torch.no_grad()
    def merge(self, other: "PositionMoments") -> None:
        """Add the moments of other, later images."""
        region = other._inside
        if region is not None or self._inside is not None:
            self._check_region(torch.ones(1) if region is None else region[None])
        if other._sums is not None:
            self._fold()
            if self._sums is None:
                self._sums = other._sums[0].clone(), other._sums[1].clone()
            else:
                self._add(*other._sums, other._folded)
            self._folded += other._folded
        for z in other._waiting:
            z = z.to(self._waiting[-1].device) if self._waiting else z
            self.update(z, None if region is None else region.expand(len(z), -1, -1))

    @torch.no_grad()
    def result(self) -> tuple[Tensor, Tensor]:
        """Return the means (H, W, C) and the sums of products of deviations from them (H, W, C, C)."""
        self._fold()
        if self._sums is None:
            raise ShapeError("z must hold at least one image, but got none")
        return self._sums

    def _check_region(self, inside: Tensor) -> None:
        """Raise DataError if images have several regions: a distribution needs its location in all of them."""
        inside = inside.cpu() > 0
        if self._inside is None and not self.count:
            self._inside = inside[0]
        if self._inside is None or not bool((inside == self._inside).all()):
            raise DataError(
                "images must have one region of interest for a distribution at every location, but got several; crop "
                "them to one size or take another recipe"
            )

    def _size(self) -> tuple[int, ...] | None:
        """Return (C, H, W), or None before the first image."""
        if self._waiting:
            return tuple(self._waiting[0].shape[1:])
        return None if self._sums is None else (self._sums[0].shape[2], *self._sums[0].shape[:2])

    def _fold(self) -> None:
        if self._waiting:
            images, self._waiting = torch.cat(self._waiting), []
            self._add_images(images)

    def _add_images(self, z: Tensor) -> None:
        """Add maps (B, C, H, W), a few rows of the grid after the other, since the sums are large."""
        channels, height, width = z.shape[1:]
        first = self._sums is None
        if self._sums is None:
            empty = wide(z[:0])
            sizes = (height, width, channels), (height, width, channels, channels)
            self._sums = empty.new_empty(sizes[0]), empty.new_empty(sizes[1])
        step = max(1, CHUNK // (width * channels**2))
        for rows in (slice(start, start + step) for start in range(0, height, step)):
            mean, squares = _moments(z[:, :, rows])
            if first:
                self._sums[0][rows], self._sums[1][rows] = mean, squares
            else:
                self._add(mean, squares, len(z), rows)
        self._folded += len(z)

    def _add(self, mean: Tensor, squares: Tensor, count: int, rows: slice = slice(None)) -> None:
        """Combine the sums in some rows of the grid with those of `count` further images.

        Chan's update, in which sums of squares about the running mean do not cancel.
        """
        if self._sums is not None:
            known, sums = (x[rows] for x in self._sums)
            total = self._folded + count
            delta = mean.to(known) - known
            flat = delta.flatten(0, 1)
            sums += squares.to(sums)
            sums.flatten(0, 1).baddbmm_(flat[:, :, None], flat[:, None], alpha=self._folded * count / total)
            known += delta * (count / total)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state on the CPU, since another process may use another device."""
        sums = None if self._sums is None else tuple(x.cpu() for x in self._sums)
        waiting = [z.cpu() for z in self._waiting]
        return {"_folded": self._folded, "_sums": sums, "_waiting": waiting, "_inside": self._inside}


def _moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and sum of squared deviations of maps (B, C, H, W) at every location."""
    x = wide(z).permute(2, 3, 0, 1)
    mean = x.mean(2)
    deviations = x - mean[:, :, None]
    return mean, deviations.mT @ deviations
