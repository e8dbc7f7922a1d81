"""Distances to the corresponding locations of the most similar normal images (SPADE)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from semflow._validation import at_least, checked
from semflow.errors import CheckpointError, ShapeError
from semflow.functional.inverse_gamma import narrow
from semflow.functional.neighbors import without_autocast
from semflow.nn import Statistics

from .fitted import FittedBase
from .semantic import Base


class GalleryMaps:
    """Locations and descriptors of normal images.

    Example:
        >>> maps = GalleryMaps(descriptor=2)
        >>> maps.update(torch.randn(3, 6, 4, 4))
        >>> [x.shape for x in maps.result()]
        [torch.Size([3, 16, 4]), torch.Size([3, 2])]
    """

    @checked
    def __init__(self, descriptor: int) -> None:
        at_least(1, descriptor=descriptor)
        self.descriptor = descriptor
        self._parts: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def update(self, z: Tensor, inside: Tensor | None = None) -> None:
        """Add latents (B, C, H, W) of the next B images, whose locations outside a region (B, H, W) are not used."""
        locations, descriptors = (x.cpu().clone() for x in divide(z, self.descriptor))
        if inside is not None:  # copies of one inside do not change distances to the nearest
            rows = inside.flatten(1).cpu()
            first = locations[torch.arange(len(rows)), rows.to(torch.int8).argmax(1)]
            locations = torch.where(rows[..., None], locations, first[:, None])
        self._parts.append((locations, descriptors))

    def merge(self, other: "GalleryMaps") -> None:
        """Add later images."""
        self._parts += other._parts

    def result(self) -> tuple[Tensor, Tensor]:
        """Return all locations (N, H W, C - D) and descriptors (N, D)."""
        if not self._parts:
            raise ShapeError("z must hold at least one image, but got none")
        locations, descriptors = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        return locations, descriptors


def divide(z: Tensor, descriptor: int) -> tuple[Tensor, Tensor]:
    """Split latents (B, C, H, W) into locations (B, H W, C - D) and descriptors (B, D), means of the last D channels.

    Example:
        >>> locations, descriptors = divide(torch.ones(2, 5, 3, 3), descriptor=1)
        >>> locations.shape, descriptors.tolist()
        (torch.Size([2, 9, 4]), [[1.0], [1.0]])
    """
    if z.dim() != 4 or z.shape[1] <= descriptor:
        raise ShapeError(f"z must be (B, C, H, W) with more than {descriptor} channels, but got {tuple(z.shape)}")
    z = narrow(z)
    return z[:, :-descriptor].flatten(2).transpose(1, 2), z[:, -descriptor:].mean((2, 3))


class Gallery(FittedBase):
    """Distances to the locations of the K most similar normal images (Cohen and Hoshen, 2020: SPADE).

    The last D channels, averaged over the image, describe it; the K images with the nearest descriptors are its
    gallery. Normality of a location is minus the squared distance of the other channels to the nearest location of
    the gallery, anywhere in these images (Eq. 3 with kappa = 1). The score of an image is the mean squared distance
    of its descriptor to the K nearest (Eq. 2). All locations of all images are stored.

    Args:
        descriptor: D.
        images: K, or all images if there are fewer; 50 in the paper.
        chunk_bytes: Approximate limit of temporary memory for each image of a batch.
        prior: See `FittedBase`.

    Example:
        >>> base, z = Gallery(descriptor=2, images=3), torch.randn(5, 6, 4, 4)
        >>> maps = base.accumulator()
        >>> maps.update(z)
        >>> base.fit(maps)
        >>> normality = base.normality(z)
        >>> normality.abs().max().item(), base.image_score(z, normality).shape
        (0.0, torch.Size([5]))
    """

    is_density = False
    leaves_out = True
    locations: Tensor
    descriptors: Tensor

    @checked
    def __init__(self, descriptor: int, images: int = 50, chunk_bytes: int = 2**26, prior: Base | None = None) -> None:
        super().__init__(prior)
        at_least(1, descriptor=descriptor, images=images, chunk_bytes=chunk_bytes)
        self.descriptor, self.images, self.chunk_bytes = descriptor, images, chunk_bytes
        self.register_buffer("locations", torch.zeros(0, 0, 0))
        self.register_buffer("descriptors", torch.zeros(0, descriptor))

    def accumulator(self) -> GalleryMaps:
        """Return an empty collection of maps."""
        return GalleryMaps(self.descriptor)

    @torch.no_grad()
    def fit(self, accumulator: GalleryMaps) -> None:
        """Store the locations and descriptors of all images."""
        locations, descriptors = accumulator.result()
        self.locations, self.descriptors = locations.to(self.locations), descriptors.to(self.descriptors)

    def normality(self, z: Tensor, statistics: Statistics | None = None, leave_out: Tensor | None = None) -> Tensor:
        """Compute minus the squared distance to the nearest location of the gallery, (B, H, W).

        Args:
            z: Latents (B, C, H, W).
            statistics: Ignored.
            leave_out: (B,) int64, the image that is left out of the gallery of each image; None leaves out none.
        """
        rows, descriptors = self._divided(z)
        _, chosen = self._similar(descriptors, leave_out)
        nearest = self._nearest(rows, chosen)
        return -(rows - nearest).square().sum(2).view(z.shape[0], *z.shape[2:])

    def image_score(self, z: Tensor, normality: Tensor, leave_out: Tensor | None = None) -> Tensor:
        """Compute the mean squared distance to the K nearest descriptors, (B,)."""
        return self._similar(self._divided(z)[1], leave_out)[0].mean(1)

    def _divided(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if not len(self.locations):
            raise ShapeError("gallery must be fitted before use, but got no images; call fit first")
        rows, descriptors = divide(z, self.descriptor)
        if rows.shape[2] != self.locations.shape[2]:
            known = self.locations.shape[2] + self.descriptor
            raise ShapeError(f"z must be (B, {known}, H, W), but got {tuple(z.shape)}")
        return rows.to(self.locations), descriptors.to(self.descriptors)

    def _similar(self, descriptors: Tensor, leave_out: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return squared distances and indices of the most similar images, (B, K)."""
        squares = (descriptors[:, None] - self.descriptors).square().sum(2)
        count = len(self.descriptors)
        if leave_out is not None:
            count -= 1
            if not count:
                raise ShapeError("gallery must hold at least 2 images to leave one out, but got 1")
            own = torch.arange(len(self.descriptors), device=squares.device) == leave_out[:, None]
            squares = squares.masked_fill(own, torch.inf)
        values, index = squares.topk(min(self.images, count), dim=1, largest=False)
        return values, index

    def _nearest(self, rows: Tensor, chosen: Tensor) -> Tensor:
        """Return the nearest stored location of the chosen images (B, K) for each row (B, L, C)."""
        size, center = self.locations.shape[1], self.locations[:, 0].mean(0)
        step = max(1, self.chunk_bytes // (rows.element_size() * size))
        with torch.no_grad(), without_autocast(rows):
            parts = [part - center for part in rows.split(step, 1)]
            best = [torch.full_like(part[..., 0], torch.inf) for part in parts]
            index = [torch.zeros_like(part[..., 0], dtype=torch.int64) for part in parts]
            for image in chosen.unbind(1):
                stored = self.locations[image] - center
                norms = stored.square().sum(2)[:, None]
                for k, part in enumerate(parts):
                    scores, where = (norms - 2 * part @ stored.mT).min(2)
                    index[k] = torch.where(scores < best[k], where + image[:, None] * size, index[k])
                    best[k] = torch.minimum(scores, best[k])
        return self.locations.flatten(0, 1)[torch.cat(index, 1)]

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Raise CheckpointError unless a saved state has as many descriptors as images."""
        locations, descriptors = state["locations"], state["descriptors"]
        if len(locations) != len(descriptors) or tuple(descriptors.shape[1:]) != (self.descriptor,):
            shapes = f"{tuple(locations.shape)} and {tuple(descriptors.shape)}"
            raise CheckpointError(f"locations and descriptors must be of the same images, but got {shapes}")

    def extra_repr(self) -> str:
        """Return the arguments and the number of stored images for `repr`."""
        return f"descriptor={self.descriptor}, images={self.images}, stored={len(self.locations)}"
