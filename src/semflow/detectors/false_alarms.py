"""Masks without any threshold or calibration image: regions of latents that chance does not explain."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from semflow._validation import at_least
from semflow.errors import ShapeError
from semflow.functional import region_significance
from semflow.functional.inverse_gamma import narrow

from .likelihood import Latents


@torch.no_grad()
def significant_regions(
    latents: Sequence[Latents], size: tuple[int, int], inside: Sequence[Tensor | None] | None = None
) -> Tensor:
    """Compute -log10 NFA of the regions of latents that stand out at any scale, (B, H, W), and 0 elsewhere.

    NFA is the number of false alarms, see `semflow.functional.region_significance`: `significant_regions(...) > 0` is
    U-Flow's mask. Latents are taken as normal with the mean and variance that were predicted, by default 0 and 1.
    Each scale has an equal part of the tests (the published code gives nearly all to the finest, where a defect of a
    few coarse locations is then never found).

    Args:
        latents: of each scale, from `Detector.encode`.
        size: (H, W) of the images. Locations are enlarged without interpolation.
        inside: (B, H_k, W_k) per scale, the locations in the region of interest; None for all.

    Example:
        >>> z = torch.zeros(1, 16, 8, 8)
        >>> z[..., 2:5, 2:5] = 4.0
        >>> (significant_regions([Latents(z, torch.zeros(1), "sample", None)], (16, 16)) > 0).sum().item()
        36
    """
    at_least(1, height=size[0], width=size[1])
    inside = [None] * len(latents) if inside is None else inside
    if not latents or len(inside) != len(latents):
        raise ShapeError(f"latents and inside must have one entry per scale, but got {len(latents)} and {len(inside)}")
    found = []
    for (z, _, _, statistics), cells in zip(latents, inside, strict=True):
        shift = 0.0 if statistics is None or statistics.normal_shift is None else narrow(statistics.normal_shift)
        squares = (narrow(z) - shift).square().sum(1)
        if statistics is not None:
            squares = squares / statistics.variance()
        if cells is not None:
            squares = squares.masked_fill(~cells, 0.0)
        significance = region_significance(squares, z.shape[1], maps=len(latents))
        found.append(F.interpolate(significance[:, None], size=size, mode="nearest-exact")[:, 0])
    return torch.stack(found).amax(0).to(latents[0].z.dtype)
