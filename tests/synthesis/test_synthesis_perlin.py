"""Perlin: noise against a slow reference, exact masks, reproducible draws, textures of the user's folder."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from semflow.errors import ConfigError, DataError, ShapeError
from semflow.synthesis import Perlin, SyntheticAnomalies, perlin_noise


def picture(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((3, rows, columns), np.float32))


def slow_noise(size: tuple[int, int], cells: tuple[int, int], angles: np.ndarray) -> np.ndarray:
    """Gradient noise, pixel by pixel and corner by corner."""

    def mix(a: float, b: float, t: float) -> float:
        return a + (b - a) * (6 * t**5 - 15 * t**4 + 10 * t**3)

    out = np.empty(size)
    for row in range(size[0]):
        for column in range(size[1]):
            y, x = row * cells[0] / size[0], column * cells[1] / size[1]
            i, j = math.floor(y), math.floor(x)
            corner = {}
            for a in (0, 1):
                for b in (0, 1):
                    angle = angles[i + a, j + b]
                    corner[a, b] = math.sin(angle) * (y - i - a) + math.cos(angle) * (x - j - b)
            upper, lower = (mix(corner[a, 0], corner[a, 1], x - j) for a in (0, 1))
            out[row, column] = math.sqrt(2) * mix(upper, lower, y - i)
    return out


@given(
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.tuples(st.sampled_from([1, 2, 4, 32]), st.sampled_from([1, 2, 8, 32])),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_noise_equals_a_slow_reference(size: tuple[int, int], cells: tuple[int, int], seed: int) -> None:
    angles = np.random.default_rng(seed).uniform(0, 2 * math.pi, (cells[0] + 1, cells[1] + 1))
    noise = perlin_noise(size, cells, np.random.default_rng(seed))
    np.testing.assert_allclose(noise, slow_noise(size, cells, angles), rtol=0, atol=1e-10)
    assert np.abs(noise).max() <= 1


def test_noise_has_mean_0_and_the_variance_of_independent_gradients() -> None:
    """A unit vector of random direction has variance 1/2 along any line, so Var = sum over corners of w^2 |d|^2."""
    rng = np.random.default_rng(0)
    draws = np.stack([perlin_noise((8, 8), (1, 1), rng) for _ in range(4000)])
    t = np.arange(8) / 8
    fade = 6 * t**5 - 15 * t**4 + 10 * t**3
    expected = np.zeros((8, 8))
    for a in (0, 1):
        for b in (0, 1):
            weight = np.outer(fade if a else 1 - fade, fade if b else 1 - fade)
            expected += weight**2 * ((t - a)[:, None] ** 2 + (t - b)[None] ** 2)
    np.testing.assert_allclose(draws.var(0), expected, atol=0.02)
    np.testing.assert_allclose(draws.mean(0), 0, atol=4 * math.sqrt(expected.max() / 4000))


def test_masks_cover_as_much_as_the_noise_exceeds_the_threshold() -> None:
    """Turning leaves the fraction within the disk about the center unchanged, on average."""
    y, x = np.indices((64, 64)) - 31.5
    disk = np.hypot(y, x) < 28
    rng = np.random.default_rng(0)
    masks = np.stack([Perlin().mask((64, 64), rng) for _ in range(400)])
    cells = 2 ** rng.integers(0, 6, (400, 2))
    noise = np.stack([perlin_noise((64, 64), (int(a), int(b)), rng) for a, b in cells]) > 0.5
    assert masks[:, disk].mean() == pytest.approx(noise[:, disk].mean(), rel=0.3)
    assert 0.03 < masks.mean() < 0.08
    fewer = np.mean([Perlin(threshold=0.7).mask((64, 64), rng).mean() for _ in range(100)])
    assert fewer < masks.mean() / 2


@given(
    st.sampled_from([(64, 64), (64, 96), (100, 33), (16, 16), (5, 7), (2, 2)]),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["black", "gray", "noise"]),
)
@settings(max_examples=40, deadline=None)
def test_mask_is_true_exactly_where_the_image_changed(size: tuple[int, int], seed: int, content: str) -> None:
    image = {
        "black": torch.zeros(3, *size), "gray": picture(*size, 1)[:1].expand(3, -1, -1), "noise": picture(*size, 1)
    }[content].clone()  # fmt: skip
    kept = image.clone()
    out, mask = Perlin()(image, image, "perlin", np.random.default_rng(seed))
    assert torch.equal(image, kept)
    assert out.dtype == torch.float32
    assert mask.dtype == torch.bool
    assert torch.equal((out != image).any(0), mask)
    assert out.min() >= 0
    assert out.max() <= 1
    again = Perlin()(image, image, "perlin", np.random.default_rng(seed))
    assert torch.equal(out, again[0])
    assert torch.equal(mask, again[1])


def test_opacity_is_uniform_between_its_bounds(tmp_path: Path) -> None:
    """On black, a white texture that no operation changes would show its opacity; most operations keep white."""
    Image.new("RGB", (40, 40), "white").save(tmp_path / "white.png")
    perlin, black = Perlin(str(tmp_path), opacity=(0.3, 0.6)), torch.zeros(3, 64, 64)
    values = [
        float(out.max())
        for out, mask in (perlin(black, black, "perlin", np.random.default_rng(k)) for k in range(100))
        if mask.any()
    ]
    assert max(values) <= 0.6 + 1e-6
    assert np.quantile(values, 0.9) > 0.5


def test_textures_come_from_the_folder_and_its_subfolders(tmp_path: Path) -> None:
    for name, color in (("a/red.png", "red"), ("b/green.jpg", "lime")):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (30, 20), color).save(tmp_path / name, quality=100)
    (tmp_path / "notes.txt").write_text("no picture")
    black = torch.zeros(3, 32, 32)
    found = set()
    for seed in range(40):
        out, mask = Perlin(str(tmp_path), opacity=(1.0, 1.0))(black, black, "perlin", np.random.default_rng(seed))
        found |= {int(out[:, mask].mean(1).argmax())} if mask.any() else set()
    assert {0, 1} <= found


def test_one_image_and_its_region_suffice() -> None:
    from semflow.data import Sample

    image = torch.cat([picture(48, 64, 2), torch.zeros(1, 48, 64)])
    image[3, 8:40, 8:40] = 1
    data = SyntheticAnomalies([Sample(image, 0, None, "a.png")], Perlin(), normal=False)
    sample = data[0]
    assert sample.label == 1
    assert not (sample.anomaly_mask & (image[3] == 0)).any()


def test_invalid_arguments(tmp_path: Path) -> None:
    image = torch.zeros(3, 8, 8)
    rng = np.random.default_rng(0)
    for arguments in ({"opacity": (0.0, 1.0)}, {"threshold": 1.0}, {"kinds": ()}, {"kinds": ("small",)}):
        with pytest.raises(ConfigError, match=f"{next(iter(arguments))} must be "):
            Perlin(**arguments)
    with pytest.raises(ConfigError, match="kind must be perlin, but got 'scar'"):
        Perlin()(image, image, "scar", rng)
    with pytest.raises(DataError, match="textures must be a folder of pictures"):
        Perlin(str(tmp_path))(image, image, "perlin", rng)
    for wrong in (image.double(), image[:1], image[0]):
        with pytest.raises(ShapeError, match="image must be"):
            Perlin()(wrong, wrong, "perlin", rng)
