"""Random changes of normal images: other positions and other light."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semflow._channels import split_region
from semflow.errors import ConfigError
from semflow.functional import hide

AUGMENTATIONS = ("rotate", "flip", "shift", "light")
"""Names of random changes: any angle; each axis with probability 1/2; up to a tenth of each side; contrast up to a
fifth and brightness up to a tenth."""

_SHIFT, _CONTRAST, _BRIGHTNESS = 0.1, 0.2, 0.1
_ATTEMPTS = 10


def check_augment(names: Sequence[str] | str) -> tuple[str, ...]:
    """Return names of augmentations, which may be one text with commas; raise ConfigError for one that is unknown.

    Example:
        >>> check_augment("rotate,light"), check_augment(())
        (('rotate', 'light'), ())
    """
    given = names.split(",") if isinstance(names, str) else names
    found = tuple(str(name).strip() for name in given)
    unknown = next((name for name in found if name not in AUGMENTATIONS), None)
    if unknown is not None:
        raise ConfigError(f"augment must be of {', '.join(AUGMENTATIONS)}, but got {unknown!r}")
    return found


def augment(image: Tensor, names: Sequence[str], rng: np.random.Generator) -> Tensor:
    """Change an image (C, H, W), gray or RGB, alone or with its region of interest, at random.

    The picture moves about the center of its region, bilinearly, and is continued by its reflection. The region moves
    with it, and keeps a part of its former place.

    Args:
        image: Float32 in [0, 1], on the CPU; not changed.
        names: Some of `AUGMENTATIONS`.
        rng: Source of all random draws, whose number depends only on the names.

    Example:
        >>> image = torch.rand(3, 8, 8)
        >>> augment(image, ("rotate", "shift"), np.random.default_rng(0)).shape
        torch.Size([3, 8, 8])
        >>> torch.equal(augment(image, (), np.random.default_rng(0)), image)
        True
    """
    colors, own = split_region(image)
    region = own > 0.5
    if len(region):
        colors = hide(colors, region[0])
    moved, place = colors, region
    for _ in range(_ATTEMPTS):
        moved, place = _moved(colors, region, names, rng)
        if not len(region) or bool((place & region).any()):
            break
    else:
        moved, place = colors, region
    if "light" in names:
        contrast, brightness = 1 + rng.uniform(-_CONTRAST, _CONTRAST), rng.uniform(-_BRIGHTNESS, _BRIGHTNESS)
        moved = (moved * contrast + brightness).clamp(0, 1)
    return torch.cat([moved, place.to(image.dtype)])


def _moved(colors: Tensor, region: Tensor, names: Sequence[str], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Rotate, flip and shift colors (1 or 3, H, W) and their region (0 or 1, H, W)."""
    turn = rng.uniform(0, 2 * math.pi) if "rotate" in names else 0.0
    flips = rng.random(2) < 0.5 if "flip" in names else np.zeros(2, bool)
    shift = rng.uniform(-_SHIFT, _SHIFT, 2) if "shift" in names else np.zeros(2)
    if not (turn or flips.any() or shift.any()):
        return colors, region
    height, width = colors.shape[1:]
    top, left, bottom, right = 0, 0, height, width
    if len(region):
        rows, columns = (region[0].any(axis).nonzero()[:, 0] for axis in (1, 0))
        top, left, bottom, right = (int(x) for x in (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1))
    # Where each pixel comes from, in pixels about the center of the region.
    y = torch.arange(height)[:, None] + 0.5 - (top + bottom) / 2 - float(shift[0]) * (bottom - top)
    x = torch.arange(width) + 0.5 - (left + right) / 2 - float(shift[1]) * (right - left)
    y, x = y * (-1.0 if flips[0] else 1.0), x * (-1.0 if flips[1] else 1.0)
    cos, sin = math.cos(turn), math.sin(turn)
    source_y, source_x = cos * y - sin * x + (top + bottom) / 2, sin * y + cos * x + (left + right) / 2
    grid = torch.stack([2 * source_x / width - 1, 2 * source_y / height - 1], 2)[None]
    moved = F.grid_sample(colors[None], grid, padding_mode="reflection", align_corners=False)[0].clamp(0, 1)
    if not len(region):
        return moved, region
    # Only where all pixels that a color is interpolated from lie inside.
    place = F.grid_sample(region[None].float(), grid, padding_mode="zeros", align_corners=False)[0]
    return moved, place > 0.999
