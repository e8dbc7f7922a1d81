"""Preparation of images for the networks: three channels, and mid-gray outside the region of interest."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from semflow._channels import split_region
from semflow._devices import is_traced
from semflow._validation import height_and_width
from semflow.errors import CheckpointError, ConfigError, ShapeError
from semflow.functional import covered, hide

from .interface import Provenance

LARGEST_REGION = 2**28
"""Largest number of pixels of a region in a file."""


class Seen(NamedTuple):
    """Images (B, 3, H, W), gray outside their region of interest, and the region (B, H, W); None is everywhere.

    Example:
        >>> see(torch.ones(2, 3, 8, 8)).inside is None
        True
    """

    images: Tensor
    inside: Tensor | None


def see(images: Tensor, region: Tensor | None = None) -> Seen:
    """Return gray images as RGB, a view, and replace pixels outside the region of interest by mid-gray.

    So no network needs to know gray images, and nothing depends on pixels outside.

    Args:
        images: (B, C, H, W) in [0, 1], see `Sample`; a region of their own is at most 0.5 outside.
        region: (H, W) bool of all images, or None.

    Example:
        >>> seen = see(torch.ones(1, 3, 2, 2), torch.eye(2) > 0)
        >>> seen.images[0, 0].round(decimals=1).tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    if region is not None and tuple(images.shape[2:]) != tuple(region.shape):
        expected, got = (f"{height} x {width}" for height, width in (region.shape, images.shape[2:]))
        raise ShapeError(f"images must have the size of the region of interest, {expected} pixels, but got {got}")
    colors, last = split_region(images)
    own = last[:, 0] > 0.5 if last.shape[1] else None
    inside = own if region is None else region.expand(images.shape[0], -1, -1) if own is None else own & region
    if inside is not None and not is_traced() and inside.device.type == "cpu":  # reading values would wait for a GPU
        if bool(inside.all()):
            inside = None
        else:
            check_inside(inside)
    shown = colors if inside is None else hide(colors, inside)
    return Seen(shown if shown.shape[1] == 3 else shown.expand(-1, 3, -1, -1), inside)


def check_inside(inside: Tensor) -> None:
    """Raise ShapeError if an image has no pixel in its region of interest (B, H, W)."""
    if not bool(inside.flatten(1).any(1).all()):
        raise ShapeError("images must have pixels in their region of interest, but got an image without any")


def at_scales(inside: Tensor | None, maps: Sequence[Tensor], localizes: bool = True) -> list[Tensor | None]:
    """Return the locations of each map (..., H_k, W_k) of which a part lies in the region; None for all.

    Locations of a detector that does not localize are whole images.

    Example:
        >>> at_scales(torch.eye(8)[None] > 0, [torch.zeros(1, 3, 2, 2)])[0].tolist()
        [[[True, False], [False, True]]]
    """
    if inside is None or not localizes:
        return [None] * len(maps)
    return [covered(inside, (x.shape[-2], x.shape[-1])) for x in maps]


def check_region(region: Tensor, provenance: Provenance) -> Tensor:
    """Return a region of interest as booleans; raise ConfigError unless it is a mask of a detector's image size."""
    if not isinstance(region, Tensor) or region.dim() != 2 or region.is_complex():
        found = tuple(region.shape) if isinstance(region, Tensor) else type(region).__name__
        raise ConfigError(f"region must be a mask (H, W), but got {found}; semflow.data.load_region makes one")
    expected = height_and_width(provenance.image_size)
    if provenance.recipe and tuple(region.shape) != expected:
        raise ConfigError(f"region must be {expected} like the images, but got {tuple(region.shape)}; load it so")
    marked = region > 0
    if not bool(marked.any()):
        raise ConfigError("region must have pixels inside, but got an empty mask; make its region positive")
    return marked


def saved_region(region: Tensor | None, provenance: Provenance, device: torch.device) -> Tensor | None:
    """Return a buffer for the region of a saved state; raise CheckpointError for one that `check_region` refuses."""
    if region is None:
        return None
    try:
        if region.dtype != torch.bool:
            raise ConfigError(f"region must be of booleans, but got {region.dtype}")
        return check_region(region, provenance).to(device)
    except ConfigError as error:
        raise CheckpointError(
            f"region must be a mask that fit can have saved, but got another one ({error}); fit the model again"
        ) from None
