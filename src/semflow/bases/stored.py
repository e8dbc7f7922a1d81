"""Latents of normal images, collected for bases that store them."""

from collections.abc import Mapping
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from semflow._validation import checked
from semflow.errors import DataError, ShapeError
from semflow.functional import to_locations
from semflow.functional.coreset_stream import CoresetAccumulator
from semflow.functional.inverse_gamma import narrow

from .fitted import Accumulator

LIMIT = 7 * 2**26
"""Bytes of latents that the bases of a detector collect together for their coresets."""
LEAST = 4  # vectors collected for each one to keep


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
            `semflow.functional.coreset_stream.CoresetAccumulator`; None is `part` of 448 MiB, but enough for four
            times the vectors to keep.
        device: Where the coreset is selected; None is the CPU.

    Attributes:
        part: See `share_limit`.

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
        limit_bytes: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.count = 0
        self.space = space
        self.shares_limit, self.part = limit_bytes is None and size is not None, 1.0
        self._all: list[Stored] = []
        self._coreset: CoresetAccumulator | None = None
        if size is not None:
            limit = LIMIT if limit_bytes is None else limit_bytes
            self._coreset = CoresetAccumulator(size, limit_bytes=limit, projection=projection, seed=seed, device=device)

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
            self._add(self._coreset, vectors, images)
        elif features is None or (len(features), features.shape[2:]) != (len(z), z.shape[2:]):
            found = None if features is None else tuple(features.shape)
            raise ShapeError(f"features must be given at the locations of z {tuple(z.shape)}, but got {found}")
        else:
            self._add(self._coreset, _locations(features)[rows], images, vectors)

    def _add(self, coreset: CoresetAccumulator, x: Tensor, images: Tensor, values: Tensor | None = None) -> None:
        if self.shares_limit:
            width = x.element_size() * (x.shape[1] + (0 if values is None else values.shape[1]))
            least = 0 if isinstance(coreset.count, float) else LEAST * width * coreset.count
            coreset.limit_bytes = max(int(LIMIT * self.part), least)
        coreset.update(x, images, values)

    def merge(self, other: Self) -> None:
        """Add the latents of later images."""
        self._all += [stored._replace(images=stored.images + self.count) for stored in other._all]
        if self._coreset is not None and other._coreset is not None:
            if self.shares_limit:
                self._coreset.limit_bytes = max(self._coreset.limit_bytes, other._coreset.limit_bytes)
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


def share_limit(accumulators: Mapping[int, Accumulator], batch: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Let the accumulators of several scales collect together what one would, an equal number of images each.

    Args:
        accumulators: Of each scale; those that are no `StoredLatents`, or have a limit of their own, are left out.
        batch: What they get of the first images, by scale and name.

    Example:
        >>> scales = {k: StoredLatents(size=100) for k in range(2)}
        >>> share_limit(scales, {0: {"z": torch.zeros(1, 24, 4, 4)}, 1: {"z": torch.zeros(1, 72, 4, 4)}})
        >>> [scale.part for scale in scales.values()]
        [0.25, 0.75]
    """
    sharing = {k: one for k, one in accumulators.items() if isinstance(one, StoredLatents) and one.shares_limit}
    sizes = {k: sum(x[0].numel() for name, x in batch[k].items() if name != "inside") for k in sharing}
    for k, one in sharing.items():
        one.part = sizes[k] / sum(sizes.values())


def _locations(x: Tensor) -> Tensor:
    return to_locations(narrow(x)).to("cpu", copy=True)
