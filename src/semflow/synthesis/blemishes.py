"""Synthetic defects of other kinds than those of CutPaste, to choose between options of a trained detector."""

from dataclasses import dataclass

import numpy as np
import scipy
from torch import Tensor

from semflow._validation import Settings
from semflow.errors import ConfigError

from .patches import REFERENCE_SIZE, Array, blend, check_images, soft_alpha

BLEMISH_KINDS = ("foreign", "shifted", "color", "blur", "light")
"""Kinds of blemishes, named by their content."""

_ATTEMPTS = 10
# Ranges in pixels at 256 px: radius of a blob's window, length and half width of a line, half axes of an ellipse, soft
# border, and standard deviation of the blur.
_RADIUS = (13.0, 51.0)
_LENGTH = (26.0, 154.0)
_HALF_WIDTH = (1.0, 3.5)
_HALF_AXIS = (3.5, 19.0)
_BORDER = (0.5, 3.0)
_SIGMA = (2.0, 5.5)


@dataclass(frozen=True)
class Blemishes(Settings):
    """Synthetic defects that differ from those of `CutPaste` in shape and content.

    They serve to choose between options of a detector on held-out normal images: a detector that was trained with
    `CutPaste` must not be judged by the same defects. The shape is a ragged blob, a thin curved line or a small
    ellipse, each with probability 1/3, with a soft border. Sizes are in pixels at 256 px and scale with the shorter
    side of the image. The kind is the content:

    - `foreign`: the donor, turned by a multiple of 90 degrees (180 unless square) and shifted;
    - `shifted`: the image itself, shifted by 1/16 to 1/2 of each side;
    - `color`: one random color or, with probability 1/2, one gray;
    - `blur`: the image, smoothed by a Gaussian of 2 to 5.5 pixels, always opaque;
    - `light`: the image with a gain of 0.4 to 1.8 and an offset of -0.3 to 0.3.

    The mask is true where the shape covers a pixel by at least 10 percent, and all other pixels keep their exact
    values. So it contains every changed pixel, and also pixels of the shape whose new content equals the old.

    Args:
        opacity: Smallest and largest opacity of a blemish; its opacity is uniform between them.
        min_change: Draw a blemish again, up to ten times, while its mean absolute change over the mask is below this
            value; the largest change is kept. An image of one color cannot show a shift or a blur.
        kinds: Kinds of blemishes to use in equal parts, from `BLEMISH_KINDS`.

    Example:
        >>> import torch
        >>> rng = np.random.default_rng(0)
        >>> image, donor = torch.zeros(3, 64, 64), torch.ones(3, 64, 64)
        >>> out, anomaly_mask = Blemishes()(image, donor, "foreign", rng)
        >>> out.shape, anomaly_mask.dtype, bool(((out != image).any(0) == anomaly_mask).all())
        (torch.Size([3, 64, 64]), torch.bool, True)
    """

    opacity: tuple[float, float] = (0.4, 1.0)
    min_change: float = 0.02
    kinds: tuple[str, ...] = BLEMISH_KINDS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.opacity[0] <= self.opacity[1] <= 1.0:
            raise ConfigError(f"opacity must be two increasing numbers above 0 and up to 1, but got {self.opacity}")
        if not 0.0 <= self.min_change <= 1.0:
            raise ConfigError(f"min_change must be between 0 and 1, but got {self.min_change}")
        if not self.kinds or not set(self.kinds) <= set(BLEMISH_KINDS):
            raise ConfigError(f"kinds must be at least one of {', '.join(BLEMISH_KINDS)}, but got {self.kinds}")

    def __call__(self, image: Tensor, donor: Tensor, kind: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Add a blemish to a copy of `image`; return it with the mask (H, W) of the blemish.

        Args:
            image: A normal image (3, H, W), float32 in [0, 1], on the CPU; not changed.
            donor: Another normal image of the same shape.
            kind: Kind of the blemish, one of `BLEMISH_KINDS`.
            rng: Source of all random draws.
        """
        check_images(image, donor)
        if kind not in BLEMISH_KINDS:
            raise ConfigError(f"kind must be one of {', '.join(BLEMISH_KINDS)}, but got {kind!r}")
        largest = -1.0
        for _ in range(_ATTEMPTS):
            made, mask = self._add(image, donor, kind, rng)
            change = float((made - image)[:, mask].abs().numpy().mean())
            if change > largest:
                out, anomaly_mask, largest = made, mask, change
            if largest >= self.min_change:
                break
        return out, anomaly_mask

    def _add(self, image: Tensor, donor: Tensor, kind: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Add one blemish, without a minimum change."""
        rows, columns = image.shape[1:]
        scale = min(rows, columns) / REFERENCE_SIZE
        shape = (_blob, _line, _ellipse)[int(rng.integers(3))]
        alpha = soft_alpha(shape((rows, columns), scale, rng), scale * rng.uniform(*_BORDER))
        if kind != "blur":  # a half transparent blur is a weaker blur
            alpha *= np.float32(rng.uniform(*self.opacity))
        return blend(image, _content(image.numpy(), donor.numpy(), kind, rng), alpha, 0, 0)


def _content(image: Array, donor: Array, kind: str, rng: np.random.Generator) -> Array:
    """Draw the content (3, H, W) of a blemish."""
    size = image.shape[1:]
    if kind == "foreign":
        turns = int(rng.integers(4)) if size[0] == size[1] else 2 * int(rng.integers(2))
        return np.roll(np.rot90(donor, turns, (1, 2)), rng.integers(size).tolist(), (1, 2))
    if kind == "shifted":
        steps = [int(rng.integers(max(side // 16, 1), side // 2 + 1)) if side > 1 else 0 for side in size]
        return np.roll(image, [step * int(rng.choice((-1, 1))) for step in steps], (1, 2))
    if kind == "color":
        values = rng.random((3 if rng.random() < 0.5 else 1, 1, 1), np.float32)
        return np.broadcast_to(values, image.shape)
    if kind == "blur":
        sigma = rng.uniform(*_SIGMA) * min(size) / REFERENCE_SIZE
        changed: Array = scipy.ndimage.gaussian_filter(image, (0.0, sigma, sigma))
    else:
        changed = image * np.float32(rng.uniform(0.4, 1.8)) + np.float32(rng.uniform(-0.3, 0.3))
    return np.clip(changed, 0.0, 1.0)


def _place(size: tuple[int, int], rng: np.random.Generator) -> tuple[Array, Array, float, float]:
    """Draw a center (y, x) in the middle 80 percent; return the pixels' coordinates about it, and the center."""
    y, x = (float(rng.uniform(0.1, 0.9)) * side - 0.5 for side in size)
    rows, columns = (np.arange(side, dtype=np.float32) for side in size)
    return rows[:, None] - np.float32(y), columns[None, :] - np.float32(x), y, x


def _blob(size: tuple[int, int], scale: float, rng: np.random.Generator) -> Array:
    """Compute the approximate depth map of a ragged blob: where smooth noise plus a Gaussian window exceeds a level."""
    # Cells of 1/2 to 1/16 of the shorter side, per axis: the blobs are often longer than wide.
    grid = [max(round(side * 2 ** int(rng.integers(1, 5)) / min(size)), 1) for side in size]
    zoom = [side / cells for side, cells in zip(size, grid, strict=True)]
    noise = scipy.ndimage.zoom(rng.standard_normal(grid, np.float32), zoom, order=3, mode="reflect", grid_mode=True)
    y, x, *_ = _place(size, rng)
    radius = float(rng.uniform(*_RADIUS)) * scale
    window = np.exp((y * y + x * x) / np.float32(-2 * radius * radius))
    field = np.float32(0.7) * np.clip(noise, -2.0, 2.0) + np.float32(2.2) * window  # noise alone is below the level
    # The window falls by at most 1.33 per radius, so this turns a difference of the field into pixels.
    depth: Array = (field - min(np.float32(1.5), np.float32(0.8) * field.max())) * np.float32(radius / 1.33)
    return depth


def _line(size: tuple[int, int], scale: float, rng: np.random.Generator) -> Array:
    """Compute the depth map of a parabola from a random pixel in a random direction."""
    *_, y, x = _place(size, rng)
    angle, length = float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(*_LENGTH)) * scale
    along = np.linspace(0.0, 1.0, int(4 * length) + 2)
    across = float(rng.normal(0.0, 0.6)) * along * (1 - along)
    ys = np.rint(y + length * (along * np.sin(angle) + across * np.cos(angle))).astype(int)
    xs = np.rint(x + length * (along * np.cos(angle) - across * np.sin(angle))).astype(int)
    inside = (ys >= 0) & (ys < size[0]) & (xs >= 0) & (xs < size[1])  # true for the first
    off = np.ones(size, dtype=bool)
    off[ys[inside], xs[inside]] = False
    half_width = float(rng.uniform(*_HALF_WIDTH)) * scale
    depth: Array = np.float32(half_width + 0.5) - scipy.ndimage.distance_transform_edt(off).astype(np.float32)
    return depth


def _ellipse(size: tuple[int, int], scale: float, rng: np.random.Generator) -> Array:
    """Compute the approximate depth map of a turned ellipse, exact at its center and its edge."""
    y, x, *_ = _place(size, rng)
    (a, b), turn = (rng.uniform(*_HALF_AXIS, 2) * scale).tolist(), float(rng.uniform(0, np.pi))
    cos, sin = float(np.cos(turn)), float(np.sin(turn))
    depth: Array = np.float32(min(a, b)) * (np.float32(1) - np.hypot((x * cos + y * sin) / a, (y * cos - x * sin) / b))
    return depth
