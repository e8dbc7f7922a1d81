"""Results collected in passes over normal images: scores and maps of batches, and latents of augmented copies."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from .colors import join_samples, sample_pixels, sampled_values


class NormalScores(NamedTuple):
    """Scores (n,) of normal images, and the maxima (n,) and pixels of their maps, see `sample_pixels`; on the CPU.

    Example:
        >>> found = [NormalScores.of(torch.rand(n), torch.rand(n, 4, 4)) for n in (2, 3)]
        >>> [x.shape for x in NormalScores.join(found)]
        [torch.Size([5]), torch.Size([5]), torch.Size([5, 17])]
    """

    scores: Tensor
    maxima: Tensor
    pixels: Tensor

    @classmethod
    def of(cls, scores: Tensor, anomaly_map: Tensor) -> Self:
        """Return those of a batch, from its scores (B,) and maps (B, H, W)."""
        maxima = anomaly_map.flatten(1).amax(1)
        wide = torch.promote_types(scores.dtype, maxima.dtype)
        return cls(scores.to(wide).cpu(), maxima.to(wide).cpu(), sample_pixels(anomaly_map))

    @classmethod
    def join(cls, parts: Iterable[Self]) -> Self:
        """Return those of all images, in order."""
        columns = list(zip(*parts, strict=True))
        if not columns:
            return cls(torch.empty(0), torch.empty(0), torch.empty(0, 1))
        return cls(torch.cat(columns[0]), torch.cat(columns[1]), join_samples(columns[2]))

    def span(self) -> tuple[float, float]:
        """Return a typical and about the rarest value of the maps."""
        ordered = sampled_values(self.pixels)
        low, high = (ordered[int(level * (len(ordered) - 1))].item() for level in (0.5, 0.9999))
        return low, high


class Scored(NamedTuple):
    """Normality of a batch at each scale, size of its images, their own scores and regions, and indices."""

    log_probs: list[Tensor]
    size: torch.Size
    own: Tensor | None
    inside: Tensor | None
    images: Tensor


def highest(scores: Tensor, images: Tensor) -> Tensor:
    """Return the highest of the scores of each image, in the order of the images' indices."""
    places = images.unique(return_inverse=True)[1]
    return scores.new_zeros(int(places.max()) + 1).scatter_reduce_(0, places, scores, "amax", include_self=False)


def stacked(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack maps along the height, and their regions if any has one."""
    if len(parts) == 1:
        return parts[0]
    tall = {name: torch.cat([part[name] for part in parts], 2) for name in parts[0] if name != "inside"}
    if any("inside" in part for part in parts):
        every = [part.get("inside", torch.ones_like(part["z"][:, 0], dtype=torch.bool)) for part in parts]
        tall["inside"] = torch.cat(every, 1)
    return tall
