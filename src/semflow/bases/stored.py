"""Latents of normal images, collected for bases that store them."""

from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from semflow._validation import checked
from semflow.errors import DataError, ShapeError
from semflow.functional import to_locations
from semflow.functional.coreset_stream import CoresetAccumulator
from semflow.functional.inverse_gamma import narrow


class Stored(NamedTuple):
    """Vectors (M, C) to store, the index (M,) of the image of each, and the covering radius, see `StoredLatents`.

    Example:
        >>> Stored(torch.zeros(2, 8), torch.tensor([0, 0])).radius
        0.0
    """

    vectors: Tensor
    images: Tensor
    radius: float = 0.0


class StoredLatents:
    """Latents of normal images on the CPU, with the index of the image of each; all, or a k-center coreset of them.

    Args:
        size: Number of vectors to keep, or their share of all; None keeps all.
        space: Choose by distances between `latents`, or between the `features` given with them.
        projection: Channels of a random projection in which these are measured; None projects nothing.
        seed: Seed of the choice.
        limit_bytes: Bytes of collected vectors from which on they are replaced by a larger coreset, see
            `semflow.functional.coreset_stream.CoresetAccumulator`.
        device: Where the coreset is selected; None is the CPU.

    Example:
        >>> latents = StoredLatents(size=0.25)
        >>> latents.update(torch.randn(2, 8, 4, 4))
        >>> stored = latents.select()
        >>> stored.vectors.shape, stored.radius > 0
        (torch.Size([8, 8]), True)
    """

    @checked
    def __init__(
        self,
        size: int | float | None = None,
        space: Literal["latents", "features"] = "latents",
        projection: int | None = None,
        seed: int = 0,
        limit_bytes: int = 2**30,
        device: torch.device | None = None,
    ) -> None:
        self.count = 0
        self.space = space
        self._all: list[Stored] = []
        self._coreset: CoresetAccumulator | None = None
        if size is not None:
            self._coreset = CoresetAccumulator(
                size, limit_bytes=limit_bytes, projection=projection, seed=seed, device=device
            )

    @torch.no_grad()
    def update(self, z: Tensor, features: Tensor | None = None, inside: Tensor | None = None) -> None:
        """Add latents of the next images.

        Args:
            z: Latents (B, C, H, W).
            features: Their features (B, D, H, W), if these are the space.
            inside: Locations (B, H, W) that are stored; None for all.
        """
        if z.dim() != 4:
            raise ShapeError(f"z must be (B, C, H, W), but got {tuple(z.shape)}")
        if not z.isfinite().all():
            raise DataError("z must be finite, but got inf or NaN")
        images = torch.arange(self.count, self.count + len(z)).repeat_interleave(z.shape[2] * z.shape[3])
        self.count += len(z)
        rows = slice(None) if inside is None else inside.flatten().cpu()
        images, vectors = images[rows], _locations(z)[rows]
        if self._coreset is None:
            self._all.append(Stored(vectors, images))
        elif self.space == "latents":
            self._coreset.update(vectors, images)
        elif features is None or (len(features), features.shape[2:]) != (len(z), z.shape[2:]):
            found = None if features is None else tuple(features.shape)
            raise ShapeError(f"features must be given at the locations of z {tuple(z.shape)}, but got {found}")
        else:
            self._coreset.update(_locations(features)[rows], images, vectors)

    def merge(self, other: Self) -> None:
        """Add the latents of later images."""
        self._all += [stored._replace(images=stored.images + self.count) for stored in other._all]
        if self._coreset is not None and other._coreset is not None:
            self._coreset.merge(other._coreset, first_id=self.count)
        self.count += other.count

    def relabel(self, images: Tensor) -> None:
        """Replace the index of each image so far by that in `images` (n,): tiles get the index of their image."""
        self._all = [stored._replace(images=images.cpu()[stored.images]) for stored in self._all]
        if self._coreset is not None:
            self._coreset.relabel(images.cpu())

    def select(self) -> Stored:
        """Return what is to be stored of all latents so far."""
        if not self.count:
            raise ShapeError("accumulator must hold the latents of at least one image, but got none")
        if self._coreset is None:
            vectors, images = (torch.cat(x) for x in list(zip(*self._all, strict=True))[:2])
            return Stored(vectors, images)
        found = self._coreset.result()
        return Stored(found.vectors if self.space == "latents" else found.values, found.ids, found.radius)


def _locations(x: Tensor) -> Tensor:
    return to_locations(narrow(x)).to("cpu", copy=True)
