"""Textures of other pictures inside masks of Perlin noise (DRAEM)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from semflow._optional import find_optional
from semflow._validation import Settings
from semflow.errors import ConfigError, DataError

from .patches import Array, check_images

PHOTOGRAPHS = "scikit-image"
_NAMES = ("brick", "grass", "gravel")
_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_LARGEST_SCALE = 5
_ATTEMPTS = 10


def perlin_noise(size: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Compute gradient noise (H, W) of mean 0, with values between -1 and 1.

    Each corner of a grid of `cells` has a random unit vector g. At a distance d from the corners of its cell, a pixel
    has the mean of sqrt(2) g . d over them, weighted by the fade 6 t^5 - 15 t^4 + 10 t^3 along each axis.

    Args:
        size: Height and width in pixels.
        cells: Cells along each axis; the first pixel lies on a corner.
        rng: Source of the directions.

    Example:
        >>> noise = perlin_noise((64, 96), (4, 8), np.random.default_rng(0))
        >>> noise.shape, bool((noise[::16, ::12] == 0).all())
        ((64, 96), True)
    """
    angles = rng.uniform(0.0, 2.0 * math.pi, (cells[0] + 1, cells[1] + 1))
    y, x = (np.arange(side) * (count / side) for side, count in zip(size, cells, strict=True))
    top, left = y.astype(int), x.astype(int)
    y, x = (y - top)[:, None], (x - left)[None, :]
    rows, columns = (t * t * t * (10.0 + t * (6.0 * t - 15.0)) for t in (y, x))
    noise = np.zeros(size)
    for down in (0, 1):
        for right in (0, 1):
            angle = angles[top + down][:, left + right]
            ramp = np.sin(angle) * (y - down) + np.cos(angle) * (x - right)
            noise += ramp * (rows if down else 1.0 - rows) * (columns if right else 1.0 - columns)
    return math.sqrt(2.0) * noise


@dataclass(frozen=True)
class Perlin(Settings):
    """Textures inside masks of Perlin noise, half transparent (Zavrtanik et al., DRAEM, ICCV 2021).

    The noise has 2^0 to 2^5 cells along each axis, is turned by up to 90 degrees, and marks the pixels above a
    threshold. They take the color of a texture, resized to the image and changed by three of ten operations: gamma,
    brightness, sharpness, saturation, solarizing, posterizing, inversion, contrast, equalization and rotation.

    Args:
        textures: Folder of pictures, searched with its subfolders; `scikit-image` takes its brick, grass and gravel.
        opacity: Smallest and largest opacity of a texture, uniform between them.
        threshold: Noise above it belongs to the anomaly.
        kinds: Kinds of anomalies; there is one.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> image = torch.zeros(3, 64, 64)
        >>> out, anomaly_mask = Perlin()(image, image, "perlin", rng)
        >>> bool(((out != image).any(0) == anomaly_mask).all())
        True
    """

    textures: str = PHOTOGRAPHS
    opacity: tuple[float, float] = (0.2, 1.0)
    threshold: float = 0.5
    kinds: tuple[str, ...] = ("perlin",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.opacity[0] <= self.opacity[1] <= 1.0:
            raise ConfigError(f"opacity must be two increasing numbers above 0 and up to 1, but got {self.opacity}")
        if not -1.0 < self.threshold < 1.0:
            raise ConfigError(f"threshold must be between -1 and 1, but got {self.threshold}")
        if not self.kinds or set(self.kinds) != {"perlin"}:
            raise ConfigError(f"kinds must be at least one of perlin, but got {self.kinds}")

    def __call__(self, image: Tensor, donor: Tensor, kind: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Blend a texture into a copy of `image`; return it with the mask (H, W) of the changed pixels.

        Args:
            image: A normal image (3, H, W), float32 in [0, 1], on the CPU; not changed.
            donor: Not used.
            kind: Kind of the anomaly, `perlin`.
            rng: Source of all random draws.
        """
        check_images(image, donor)
        if kind != "perlin":
            raise ConfigError(f"kind must be perlin, but got {kind!r}")
        size = (image.shape[1], image.shape[2])
        for _ in range(_ATTEMPTS):
            above = self.mask(size, rng)
            texture = _texture(self.textures, size, rng)
            alpha = np.float32(rng.uniform(*self.opacity)) * above
            out = image.clone()
            out.numpy()[...] += alpha * (texture - out.numpy())
            anomaly_mask = (out != image).any(0)
            if anomaly_mask.any():
                break
        return out, anomaly_mask

    def mask(self, size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
        """Draw where an anomaly lies (H, W); often nowhere if the noise has few cells."""
        cells = tuple(2 ** int(rng.integers(0, _LARGEST_SCALE + 1)) for _ in size)
        noise = perlin_noise(size, (cells[0], cells[1]), rng)
        turned = scipy.ndimage.rotate(noise, rng.uniform(-90.0, 90.0), reshape=False, order=1)
        above: NDArray[np.bool_] = turned > self.threshold
        return above


def _texture(textures: str, size: tuple[int, int], rng: np.random.Generator) -> Array:
    """Draw a changed texture (3, H, W)."""
    paths = _paths(textures)
    picture = _read(paths[int(rng.integers(len(paths)))], size)
    for number in rng.choice(len(_OPERATIONS), 3, replace=False):
        picture = _OPERATIONS[int(number)](picture, rng)
    return np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)


@lru_cache
def _paths(textures: str) -> tuple[Path, ...]:
    if textures == PHOTOGRAPHS:
        return tuple(find_optional("skimage") / "data" / f"{name}.png" for name in _NAMES)
    paths = tuple(sorted(path for path in Path(textures).rglob("*") if path.suffix.lower() in _ENDINGS))
    if not paths:
        raise DataError(f"textures must be a folder of pictures, but got none in {textures}")
    return paths


@lru_cache(256)
def _read(path: Path, size: tuple[int, int]) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)


def _shifted(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    values = np.asarray(picture, dtype=np.float32) * np.float32(rng.uniform(0.8, 1.2)) + np.float32(rng.uniform(-30, 30))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _gamma(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    powers = rng.uniform(0.5, 2.0, 3).astype(np.float32)
    values = (np.asarray(picture, dtype=np.float32) / np.float32(255)) ** powers
    return Image.fromarray((255 * values).round().astype(np.uint8))


def _hue(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    values = np.asarray(picture.convert("HSV"), dtype=np.int16).copy()
    hue, saturation = rng.integers(-50, 51, 2)
    values[..., 0] = (values[..., 0] + hue) % 256
    values[..., 1] = (values[..., 1] + saturation).clip(0, 255)
    return Image.fromarray(values.astype(np.uint8), "HSV").convert("RGB")


_OPERATIONS: tuple[Callable[[Image.Image, np.random.Generator], Image.Image], ...] = (
    _gamma,
    _shifted,
    _hue,
    lambda picture, rng: ImageEnhance.Sharpness(picture).enhance(float(rng.uniform(0.0, 2.0))),
    lambda picture, rng: ImageOps.solarize(picture, int(rng.integers(32, 129))) if rng.random() < 0.5 else picture,
    lambda picture, rng: ImageOps.posterize(picture, int(rng.integers(1, 9))),
    lambda picture, rng: ImageOps.invert(picture),
    lambda picture, rng: ImageOps.autocontrast(picture, float(rng.integers(0, 20))),
    lambda picture, rng: ImageOps.equalize(picture),
    lambda picture, rng: picture.rotate(float(rng.uniform(-45.0, 45.0)), Image.Resampling.BILINEAR),
)
