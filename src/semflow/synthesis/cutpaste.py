"""Cut-and-paste anomalies with shapes, color jitter and soft borders of the paper."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semflow._validation import Settings
from semflow.errors import ConfigError

from .patches import REFERENCE_SIZE, Array, blend, check_images, circle, jitter_colors, rectangle, soft_alpha

KINDS = ("small", "medium", "circle", "scar")
"""Kinds of synthetic anomalies: the first three of SANFlow, and the scar of CutPaste (Li et al. 2021)."""

_ATTEMPTS = 10
# Ranges of (rows, columns), radius and (columns, rows) in pixels at 256 px: supplement B.2 of SANFlow, and Li et al.
_SMALL = ((2, 32), (10, 50))
_MEDIUM = ((16, 64), (64, 256))
_RADIUS = (10, 25)
_SCAR = ((2, 16), (10, 25))


@dataclass(frozen=True)
class CutPaste(Settings):
    """Patches cut out of another normal image, changed, and pasted with a soft border (SANFlow, section 3.2).

    Sizes in pixels at 256 px, scaled with the shorter side of the image: `small` rectangle 2-32 x 10-50, `medium`
    rectangle 16-64 x 64-256, `circle` of radius 10-25, `scar` 2-16 wide and 10-25 long. The positions in the donor and
    in the image are uniform; each axis is flipped with probability 1/2. Shape and content rotate together by an angle
    uniform in +-`rotation` degrees (the paper gives no range; of a circle only the content rotates). Brightness,
    contrast, saturation and hue each change by an amount uniform in +-`jitter`. The mask is true for every changed
    pixel, including the soft border (alpha > 0, as in the authors' code).

    Args:
        jitter: Largest relative change of brightness, contrast and saturation, and of hue in full turns.
        rotation: Largest angle in degrees; 0 pastes the pixels without interpolation.
        border: Width of the soft border in pixels at 256 px, narrower for thin patches; 0 for a hard edge.
        min_change: Draw a patch again, up to ten times, while its mean absolute change over the mask is below this
            value. The paper keeps every patch (0), so some changes are invisible, such as background on background.
        kinds: Kinds of anomalies that training uses in equal parts, from `KINDS`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> image, donor = torch.zeros(3, 64, 64), torch.ones(3, 64, 64)
        >>> out, anomaly_mask = CutPaste()(image, donor, "circle", rng)
        >>> out.shape, anomaly_mask.dtype, bool(((out != image).any(0) == anomaly_mask).all())
        (torch.Size([3, 64, 64]), torch.bool, True)
    """

    jitter: float = 0.1
    rotation: float = 45.0
    border: float = 3.0
    min_change: float = 0.0
    kinds: tuple[str, ...] = ("small", "medium", "circle")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, largest in (("jitter", 1.0), ("rotation", 180.0), ("border", 256.0), ("min_change", 1.0)):
            value = getattr(self, name)
            if not 0.0 <= value <= largest:
                raise ConfigError(f"{name} must be between 0 and {largest:g}, but got {value}")
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ConfigError(f"kinds must be at least one of {', '.join(KINDS)}, but got {self.kinds}")

    def __call__(self, image: Tensor, donor: Tensor, kind: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Paste a patch of `donor` into a copy of `image`; return it with the mask (H, W) of the changed pixels.

        Args:
            image: A normal image (3, H, W), float32 in [0, 1], on the CPU; not changed.
            donor: Another normal image of the same shape.
            kind: Kind of the anomaly, one of `KINDS`.
            rng: Source of all random draws.
        """
        check_images(image, donor)
        out, anomaly_mask = self._paste(image, donor, kind, rng)
        if self.min_change > 0.0:
            for _ in range(_ATTEMPTS - 1):
                if float((out - image)[:, anomaly_mask].abs().numpy().mean()) >= self.min_change:
                    break
                out, anomaly_mask = self._paste(image, donor, kind, rng)
        return out, anomaly_mask

    def _paste(self, image: Tensor, donor: Tensor, kind: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Paste one patch, without a minimum change."""
        rows, columns = image.shape[1:]
        depth, y, x, box = self._shape(kind, (rows, columns), rng)
        alpha = soft_alpha(depth, self.border * min(rows, columns) / REFERENCE_SIZE)
        patch = _cut(donor, box, y, x, alpha.shape, rng)
        if self.jitter > 0.0:
            patch = jitter_colors(patch, *rng.uniform(-self.jitter, self.jitter, size=4).tolist())
        top = int(rng.integers(0, rows - alpha.shape[0] + 1))
        left = int(rng.integers(0, columns - alpha.shape[1] + 1))
        return blend(image, patch, alpha, top, left)

    def _shape(
        self, kind: str, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[Array, Array, Array, tuple[int, int]]:
        """Draw a shape; return its depth map, the coordinates of its frame, and the (height, width) of its content."""
        scale = min(size) / REFERENCE_SIZE
        angle = float(rng.uniform(-self.rotation, self.rotation)) if self.rotation > 0.0 else 0.0
        if kind == "circle":
            diameter = 2 * rng.uniform(_RADIUS[0] * scale, _RADIUS[1] * scale)
            diameter = min(max(diameter, 1.0), *size)
            side = min(int(np.ceil(diameter)), *size)
            return *circle(diameter / 2, angle, size), (side, side)
        if kind == "scar":
            thickness, length = _draw(_SCAR[0], scale, size[1], rng), _draw(_SCAR[1], scale, size[0], rng)
            return *rectangle(length, thickness, angle, size), (length, thickness)
        if kind not in KINDS:
            raise ConfigError(f"kind must be one of {', '.join(KINDS)}, but got {kind!r}")
        ranges = _SMALL if kind == "small" else _MEDIUM
        height, width = _draw(ranges[0], scale, size[0], rng), _draw(ranges[1], scale, size[1], rng)
        return *rectangle(height, width, angle, size), (height, width)


def _draw(span: tuple[int, int], scale: float, largest: int, rng: np.random.Generator) -> int:
    """Draw a number of pixels, uniform in the scaled span, at least 1 and at most the size of the image."""
    low, high = (min(max(round(end * scale), 1), largest) for end in span)
    return int(rng.integers(low, high + 1))


def _cut(
    donor: Tensor, box: tuple[int, int], y: Array, x: Array, shape: tuple[int, ...], rng: np.random.Generator
) -> Array:
    """Cut a `box` out of the donor, flip it at random, and resample it in the frame (y, x) of a rotated shape."""
    height, width = box
    top = int(rng.integers(0, donor.shape[1] - height + 1))
    left = int(rng.integers(0, donor.shape[2] - width + 1))
    crop = donor[:, top : top + height, left : left + width]
    flips = [axis for axis, flip in ((1, rng.random() < 0.5), (2, rng.random() < 0.5)) if flip]
    if flips:
        crop = crop.flip(flips)
    if shape == (height, width) and y.shape[1] == 1:  # not rotated: the pixels of the donor
        return crop.numpy()
    # Coordinates of grid_sample are -1 at the first edge of the crop and 1 at the last (align_corners=False).
    grid = np.empty((1, *shape, 2), dtype=np.float32)
    grid[0, :, :, 0] = x * np.float32(2.0 / width)
    grid[0, :, :, 1] = y * np.float32(2.0 / height)
    turned = F.grid_sample(
        crop.unsqueeze(0), torch.from_numpy(grid), mode="bilinear", padding_mode="border", align_corners=False
    )
    # Rounding of bilinear weights can exceed 1.
    content: Array = np.clip(turned[0].numpy(), 0.0, 1.0)
    return content
