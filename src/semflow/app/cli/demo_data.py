"""Images of the demo: crops of real textures and synthetic defects, in the folders that `fit` and `evaluate` read.

A defect takes a gray image (H, W) in [0, 1] and a generator. It returns the image with the defect, and the mask (H, W)
of all pixels that may have changed. The defects are of other kinds than the rectangles and circles of training.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from semflow._optional import find_optional
from semflow.data import decode_image
from semflow.errors import ConfigError

from .console import write_png

Gray: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
Defect: TypeAlias = Callable[[Gray, np.random.Generator], tuple[Gray, Mask]]

TEXTURES = ("brick", "grass", "gravel")
CROP = 128
TRAINING_SHARE = 0.62  # of the photograph's width; test crops share no pixel with it
TRAINING_CROPS, GOOD_TESTS, TESTS_PER_KIND, CALIBRATION_CROPS = 96, 10, 4, 19


def photograph(name: str) -> Gray:
    """Read a photograph of scikit-image as gray values in [0, 1]. Nothing is downloaded."""
    folder = find_optional("skimage") / "data"
    found = [path for path in (folder / f"{name}.png", folder / f"{name}.jpg") if path.is_file()]
    if not found:
        missing = folder / f"{name}.png"
        raise ConfigError(f"{missing} must exist, but got none; run pip install --force-reinstall scikit-image")
    return np.asarray(decode_image(found[0]).convert("L"), dtype=np.float64) / 255.0


def write_texture(name: str, root: Path, seed: int, among: Sequence[str] = TEXTURES) -> None:
    """Write a data set of one texture: train from the left of the photograph, test and ground_truth from the right.

    Crops for calibration are drawn from the right, too, like the good test crops, as the false-alarm rate assumes; the
    two may overlap. The random crops depend on the seed and the texture's place `among` the names.
    """
    image = photograph(name)
    rng = np.random.default_rng((seed, among.index(name)))
    border = round(TRAINING_SHARE * image.shape[1])
    left, right = image[:, :border], image[:, border:]
    for number in range(TRAINING_CROPS):
        _save(root / "train" / "good" / f"{number:03d}.png", _crop(left, rng))
    for number in range(GOOD_TESTS):
        _save(root / "test" / "good" / f"{number:03d}.png", _crop(right, rng))
    for kind, defect in DEFECTS.items():
        for number in range(TESTS_PER_KIND):
            changed, mask = defect(_crop(right, rng), rng)
            _save(root / "test" / kind / f"{number:03d}.png", changed)
            _save(root / "ground_truth" / kind / f"{number:03d}_mask.png", mask.astype(np.float64))
    for number in range(CALIBRATION_CROPS):
        _save(root / "calibration" / f"{number:03d}.png", _crop(right, rng))


def _crop(image: Gray, rng: np.random.Generator) -> Gray:
    """Cut out a random square, mirrored half of the time."""
    top, left = (int(rng.integers(0, side - CROP + 1)) for side in image.shape)
    crop = image[top : top + CROP, left : left + CROP]
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def _save(path: Path, values: Gray) -> None:
    write_png(path, Image.fromarray((np.clip(values, 0.0, 1.0) * 255.0).round().astype(np.uint8)))


def scratch(image: Gray, rng: np.random.Generator) -> tuple[Gray, Mask]:
    """Draw a long, bright quadratic Bezier curve, two to three pixels wide."""
    start, end = _two_ends(image.shape, rng, 0.5, 0.8)
    bend = (start + end) / 2 + rng.normal(0.0, 0.12 * min(image.shape), 2)
    t = np.linspace(0.0, 1.0, 4 * max(image.shape))[:, None]
    line = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    cover = _near(line, image.shape, rng.uniform(1.0, 1.5))
    return _blend(image, 0.95, 0.85 * cover)


def crack(image: Gray, rng: np.random.Generator) -> tuple[Gray, Mask]:
    """Draw a dark, jagged line with one branch: a random walk that keeps its direction."""
    start, end = _two_ends(image.shape, rng, 0.45, 0.7)
    heading = np.arctan2(*(end - start))
    trunk = _walk(start, heading, int(np.hypot(*(end - start))), rng)
    branch = _walk(trunk[len(trunk) // 2], heading + rng.choice([-0.9, 0.9]), len(trunk) // 3, rng)
    cover = np.maximum(_near(trunk, image.shape, 1.4), _near(branch, image.shape, 0.9))
    return _blend(image, 0.05, 0.9 * cover)


def stain(image: Gray, rng: np.random.Generator) -> tuple[Gray, Mask]:
    """Brighten and flatten a blob with a ragged, soft edge."""
    cover = _blob(image.shape, rng, radius=0.17, raggedness=0.5)
    return _blend(image, 0.8, 0.65 * cover)


def smear(image: Gray, rng: np.random.Generator) -> tuple[Gray, Mask]:
    """Average the texture in one direction, within a blob."""
    cover = _blob(image.shape, rng, radius=0.2, raggedness=0.3)
    length, angle = 15, rng.uniform(0.0, np.pi)
    reach = (np.arange(length) - length // 2)[:, None] * np.array([np.sin(angle), np.cos(angle)])
    wiped = np.mean([ndimage.shift(image, step, order=1, mode="reflect") for step in reach], axis=0)
    return _blend(image, wiped, cover)


def swirl(image: Gray, rng: np.random.Generator) -> tuple[Gray, Mask]:
    """Turn the texture about a point, by an angle that falls from the center to 0 at a radius."""
    radius = rng.uniform(0.16, 0.22) * min(image.shape)
    y, x, distance = _polar(image.shape, _inside(image.shape, rng, radius))
    turn = rng.choice([-1.0, 1.0]) * 2.2 * np.clip(1.0 - distance / radius, 0.0, 1.0)
    middle = np.indices(image.shape) - np.stack([y, x])
    sampled = middle + np.stack([np.cos(turn) * y - np.sin(turn) * x, np.sin(turn) * y + np.cos(turn) * x])
    turned = np.asarray(ndimage.map_coordinates(image, sampled, order=1, mode="reflect"), dtype=np.float64)
    return turned, distance < radius


def most_visible(defect: Defect, tries: int = 6) -> Defect:
    """Return a defect that keeps the most visible of several draws, because smearing a plain area changes little."""

    def drawn(image: Gray, rng: np.random.Generator) -> tuple[Gray, Mask]:
        candidates = [defect(image, rng) for _ in range(tries)]
        return max(candidates, key=lambda candidate: float(np.abs(candidate[0] - image).sum()))

    return drawn


DEFECTS: dict[str, Defect] = {
    "crack": crack, "scratch": scratch, "smear": most_visible(smear), "stain": stain, "swirl": most_visible(swirl)
}  # fmt: skip


def _blend(image: Gray, other: Gray | float, cover: Gray) -> tuple[Gray, Mask]:
    return (1.0 - cover) * image + cover * other, cover > 0.0


def _two_ends(shape: tuple[int, ...], rng: np.random.Generator, shortest: float, longest: float) -> tuple[Gray, Gray]:
    """Draw two points near the center, whose distance is a fraction of the image's side."""
    side = min(shape)
    angle = rng.uniform(0.0, 2 * np.pi)
    half = rng.uniform(shortest, longest) * side / 2 * np.array([np.sin(angle), np.cos(angle)])
    middle = np.array(shape) / 2 + rng.uniform(-0.1, 0.1, 2) * side
    return middle - half, middle + half


def _walk(start: Gray, heading: float, steps: int, rng: np.random.Generator) -> Gray:
    """Return points one pixel apart whose direction varies about `heading`, with short legs in other directions."""
    wander = ndimage.gaussian_filter1d(rng.normal(0.0, 1.2, steps), 2.0)
    angles = heading + wander + np.repeat(rng.normal(0.0, 0.5, steps // 5 + 1), 5)[:steps]
    points: Gray = start + np.stack([np.sin(angles), np.cos(angles)], axis=1).cumsum(axis=0)
    return points


def _near(points: Gray, shape: tuple[int, ...], half_width: float) -> Gray:
    """Return an antialiased line: 1 within `half_width` of the points, falling to 0 over one pixel."""
    away = np.ones(shape, dtype=bool)
    rows, columns = points.round().astype(int).T
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    away[rows[inside], columns[inside]] = False
    distance = np.asarray(ndimage.distance_transform_edt(away), dtype=np.float64)
    return np.clip(half_width + 0.5 - distance, 0.0, 1.0)


def _blob(shape: tuple[int, ...], rng: np.random.Generator, radius: float, raggedness: float) -> Gray:
    """Return a smooth patch, 1 inside and 0 outside: a cone plus smoothed noise on two scales, clipped."""
    side = min(shape)
    _, _, distance = _polar(shape, _inside(shape, rng, radius * side))
    noise = sum(_smooth_noise(shape, rng, scale * side) * weight for scale, weight in ((0.06, 1.0), (0.025, 0.5)))
    height = 1.0 - distance / (radius * side) + raggedness * noise * (distance < 2 * radius * side)
    return np.clip(height / 0.25, 0.0, 1.0)


def _smooth_noise(shape: tuple[int, ...], rng: np.random.Generator, scale: float) -> Gray:
    noise = ndimage.gaussian_filter(rng.normal(size=shape), scale, mode="wrap")
    return np.asarray(noise / noise.std() * 0.4, dtype=np.float64)


def _inside(shape: tuple[int, ...], rng: np.random.Generator, margin: float) -> Gray:
    return np.array([rng.uniform(margin, side - margin) for side in shape])


def _polar(shape: tuple[int, ...], middle: Gray) -> tuple[Gray, Gray, Gray]:
    rows, columns = np.indices(shape, dtype=np.float64)
    y, x = rows - middle[0], columns - middle[1]
    return y, x, np.hypot(y, x)
