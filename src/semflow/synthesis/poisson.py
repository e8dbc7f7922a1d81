"""Patches of other normal images that are blended without a seam (NSA)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from semflow._validation import Settings, at_least
from semflow.errors import ConfigError

from .patches import REFERENCE_SIZE, Array, check_images

BLEND_KINDS = ("seamless", "mixed")
"""Kinds of Poisson blending: all differences of the patch, or the larger of its and the image's."""

# Published: the Gamma distribution of half widths, the smallest change that the mask marks, and the share of objects.
_SHAPE, _SCALE, _OFFSET = 2.0, 0.05, 0.03
_TOLERANCE = 1 / 255
_SHARE = 0.25
_PLACES = 200
_ATTEMPTS = 10


def poisson_blend(image: Array, patch: Array, mixed: bool = False) -> NDArray[np.float64]:
    """Compute the picture (C, H, W) with the gradients of `patch` that equals `image` on its outermost pixels.

    It solves Poisson's equation, sum over the 4 neighbors q of p of (u_p - u_q) = sum of v_pq, exactly by sine
    transforms, in float64. v_pq are the differences of the patch (Pérez et al., SIGGRAPH 2003, Eq. 11); of the image
    where `mixed` and these are larger (Eq. 13).

    Args:
        image: Picture to blend into; its interior counts only if `mixed`.
        patch: Picture of the same shape.
        mixed: Keep the stronger of the two differences.

    Example:
        >>> image, patch = np.zeros((1, 5, 5)), np.ones((1, 5, 5))
        >>> float(np.abs(poisson_blend(image, patch)).max())  # a patch of one color has no gradients
        0.0
    """
    u, patch = np.array(image, dtype=np.float64), np.asarray(patch, dtype=np.float64)
    if min(u.shape[1:]) < 3:
        return u
    right = np.zeros_like(u)
    for axis in (1, 2):
        v = np.diff(patch, axis=axis)
        if mixed:
            own = np.diff(u, axis=axis)
            v = np.where(np.abs(own) > np.abs(v), own, v)
        inside = [slice(None)] * 3
        inside[axis] = slice(1, -1)
        right[tuple(inside)] -= np.diff(v, axis=axis)
    inner = right[:, 1:-1, 1:-1]
    inner[:, 0] += u[:, 0, 1:-1]
    inner[:, -1] += u[:, -1, 1:-1]
    inner[:, :, 0] += u[:, 1:-1, 0]
    inner[:, :, -1] += u[:, 1:-1, -1]
    rows, columns = (2 - 2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1)) for n in inner.shape[1:])
    waves = scipy.fft.dstn(inner, 1, axes=(1, 2)) / (rows[:, None] + columns)
    u[:, 1:-1, 1:-1] = scipy.fft.idstn(waves, 1, axes=(1, 2))
    return u


@dataclass(frozen=True)
class Poisson(Settings):
    """Patches of another normal image, resized and blended without a seam (Schlüter et al., NSA, ECCV 2022).

    Half of the height and of the width of a patch are 3 % plus a Gamma(2, 5 %) distributed part of the image's, within
    `width`. It is resized by a factor that is normal with mean 1 and standard deviation 0.5, within `resize`, and
    blended at a uniform position. The first of `patches` is always there, each other one with probability 1/2. The mask
    marks the pixels that change by more than 1/255 on average over the colors, after a median of 5x5 pixels at 256 px;
    all other pixels keep their values.

    Args:
        width: Smallest and largest half width, as fractions of the side of the image.
        resize: Smallest and largest factor; the paper takes (0.5, 2) for textures.
        patches: Largest number of patches; the paper takes 3 for objects and 4 for textures.
        background: Gray value of 0 to 255 and distance from it below which a pixel is background. A quarter of a patch
            must then be of the object, and a quarter of that must come to lie on the object; None for textures.
        kinds: Kinds of blending that training uses in equal parts, from `BLEND_KINDS`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> image, donor = torch.rand(2, 3, 64, 64)
        >>> out, anomaly_mask = Poisson()(image, donor, "seamless", rng)
        >>> bool(((out != image).any(0) == anomaly_mask).all())
        True
    """

    choice: ClassVar[str] = "poisson"

    width: tuple[float, float] = (0.03, 0.4)
    resize: tuple[float, float] = (0.7, 1.3)
    patches: int = 3
    background: tuple[float, float] | None = None
    kinds: tuple[str, ...] = BLEND_KINDS

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, patches=self.patches)
        if not 0.0 < self.width[0] <= self.width[1] <= 0.5:
            raise ConfigError(f"width must be two increasing numbers above 0 and up to 0.5, but got {self.width}")
        if not 0.0 < self.resize[0] <= self.resize[1]:
            raise ConfigError(f"resize must be two increasing numbers above 0, but got {self.resize}")
        if not self.kinds or not set(self.kinds) <= set(BLEND_KINDS):
            raise ConfigError(f"kinds must be at least one of {', '.join(BLEND_KINDS)}, but got {self.kinds}")

    def __call__(self, image: Tensor, donor: Tensor, kind: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Blend patches of `donor` into a copy of `image`; return it with the mask (H, W) of the changed pixels.

        Args:
            image: A normal image (3, H, W), float32 in [0, 1], on the CPU; not changed.
            donor: Another normal image of the same shape.
            kind: Kind of the blending, one of `BLEND_KINDS`.
            rng: Source of all random draws.
        """
        check_images(image, donor)
        if kind not in BLEND_KINDS:
            raise ConfigError(f"kind must be one of {', '.join(BLEND_KINDS)}, but got {kind!r}")
        for _ in range(_ATTEMPTS):
            changed = image.numpy().copy()
            for number in range(self.patches):
                if number == 0 or rng.random() < 0.5:
                    self._blend(changed, donor.numpy(), kind == "mixed", rng)
            change = np.abs(changed - image.numpy()).mean(0)
            marked = _median(change > _TOLERANCE, 5)
            out = torch.where(torch.from_numpy(marked), torch.from_numpy(changed), image)
            anomaly_mask = (out != image).any(0)
            if anomaly_mask.any():
                break
        return out, anomaly_mask

    def _object(self, image: Array) -> NDArray[np.bool_]:
        """Find the pixels (H, W) of the object."""
        if self.background is None:
            return np.ones(image.shape[1:], dtype=bool)
        gray, distance = self.background
        found = np.abs(255 * image.mean(0) - gray) > distance
        return _median(found, 7)

    def _blend(self, image: Array, donor: Array, mixed: bool, rng: np.random.Generator) -> None:
        """Blend one patch into `image` (3, H, W), in place."""
        size = image.shape[1:]
        low, high = (np.maximum(1, np.rint(np.multiply(end, size))).astype(int) for end in self.width)
        half = np.clip((_OFFSET + rng.gamma(_SHAPE, _SCALE, 2)) * size, low, high).astype(int)
        on, off = self._object(donor), self._object(image)
        for _ in range(_PLACES):
            center = [
                int(rng.integers(min(edge, side - 1), max(side - edge, edge + 1, 1)))
                for edge, side in zip(low, size, strict=True)
            ]
            top, left = (max(c - h, 0) for c, h in zip(center, half, strict=True))
            bottom, right = (min(c + h, side) for c, h, side in zip(center, half, size, strict=True))
            cut, of = donor[:, top:bottom, left:right], on[top:bottom, left:right]
            if of.mean() > _SHARE:
                break
        else:
            return
        factor = float(np.clip(rng.normal(1.0, 0.5), *self.resize))
        limits = [min(2 * h, s) / n for h, n, s in zip(high, of.shape, size, strict=True)]
        rows, columns = (max(1, int(min(factor, *limits) * n)) for n in of.shape)
        both = torch.from_numpy(np.concatenate([cut, of[None]]).astype(np.float32))[None]
        patch = F.interpolate(both, (rows, columns), mode="bilinear", align_corners=False)[0].numpy()
        of = patch[3] > 0.5
        for _ in range(_PLACES):
            top, left = int(rng.integers(size[0] - rows + 1)), int(rng.integers(size[1] - columns + 1))
            if (of & off[top : top + rows, left : left + columns]).sum() >= _SHARE * of.sum():
                break
        else:
            return
        patch = patch[:3]
        window = image[:, top : top + rows, left : left + columns]
        window[...] = np.clip(poisson_blend(window, patch, mixed), 0.0, 1.0)


def _median(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Smooth a mask by a median of `width` pixels at 256 px."""
    width = 2 * round((width * min(mask.shape) / REFERENCE_SIZE - 1) / 2) + 1
    smooth: NDArray[np.bool_] = scipy.ndimage.median_filter(mask.astype(np.uint8), max(width, 1)) > 0
    return smooth
