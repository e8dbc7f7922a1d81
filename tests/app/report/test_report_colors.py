from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage.color import rgb2lab

from semflow.app.cli.console import write_png
from semflow.app.report import heat_colors, heat_map, overlay, to_picture
from semflow.app.report.colors import HEAT_ANCHORS, PALETTE, normalize
from semflow.errors import ConfigError, ShapeError


def test_lightness_rises_evenly() -> None:
    """Lightness is CIE L* as scikit-image computes it."""
    colors = heat_colors(np.linspace(0, 1, 101, dtype=np.float32))
    lightness = rgb2lab(colors[None] / 255.0)[0, :, 0]
    steps = np.diff(lightness[::10])
    assert steps.min() > 5
    assert steps.max() < 12
    anchors = rgb2lab(HEAT_ANCHORS[None] / 255.0)[0, :, 0]
    assert np.ptp(np.diff(anchors)) < 4


def test_heat_colors_interpolate_the_anchors() -> None:
    positions = np.linspace(0, 1, len(HEAT_ANCHORS), dtype=np.float32)
    np.testing.assert_array_equal(heat_colors(positions), HEAT_ANCHORS)


@given(
    st.floats(-1e6, 1e6, allow_nan=False, width=32),
    st.floats(-1e6, 1e6, allow_nan=False, width=32),
    st.floats(2**-20, 1e6, width=32),
)
def test_normalize_keeps_order_and_stays_in_range(a: float, b: float, width: float) -> None:
    low = min(a, b)
    levels = normalize(np.array([a, b, low, low + width], dtype=np.float32), (low, low + width))
    assert ((levels >= 0) & (levels <= 1)).all()
    assert (a < b) <= (levels[0] <= levels[1])
    assert levels[2] == 0


@pytest.mark.parametrize("value_range", [(1.0, 1.0), (2.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_normalize_rejects_invalid_ranges(value_range: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="value_range"):
        normalize(np.zeros(1, dtype=np.float32), value_range)


def test_heat_map_rejects_nan() -> None:
    with pytest.raises(ShapeError, match="NaN"):
        heat_map(torch.full((2, 2), torch.nan), (0.0, 1.0))


def test_heat_map_clips_infinities() -> None:
    picture = heat_map(torch.tensor([[-torch.inf, torch.inf]]), (0.0, 1.0))
    assert picture.getpixel((0, 0)) == tuple(HEAT_ANCHORS[0])
    assert picture.getpixel((1, 0)) == tuple(HEAT_ANCHORS[-1])


def test_overlay_changes_only_anomalous_pixels() -> None:
    image = torch.rand(3, 8, 6, generator=torch.Generator().manual_seed(0))
    anomaly_map = torch.zeros(8, 6, requires_grad=True) + 0.0
    anomaly_map[2, 3] = 1.0
    picture = np.asarray(overlay(image, anomaly_map, (0.0, 1.0)))
    plain = np.asarray(to_picture(image))
    different = (picture != plain).any(axis=2)
    assert different.sum() == 1
    assert different[2, 3]
    expected = 0.25 * image[:, 2, 3].numpy() * 255 + 0.75 * HEAT_ANCHORS[-1]
    np.testing.assert_allclose(picture[2, 3], expected, atol=1.0)


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_overlay_is_its_formula_within_two_levels(seed: int, opacity: float, low: float, width: float) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (3, 16, 16)) / 255.0
    values = (low + width * rng.uniform(-0.5, 1.5, (16, 16))).astype(np.float32)
    share = np.clip((values.astype(float) - low) / width, 0.0, 1.0)[..., None]
    positions = np.linspace(0.0, 1.0, len(HEAT_ANCHORS))
    colors = np.stack([np.interp(share[..., 0], positions, anchors) for anchors in HEAT_ANCHORS.T], axis=-1)
    covered = opacity * share**2 * (3.0 - 2.0 * share)
    plain = 255.0 * image.transpose(1, 2, 0)
    drawn = np.asarray(overlay(image, values, (low, low + width), opacity)).astype(float)
    np.testing.assert_allclose(drawn, (1.0 - covered) * plain + covered * colors, atol=2.5)
    assert (drawn == np.rint(plain))[share[..., 0] == 0].all()


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (64, 64)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_png_files_are_lossless(mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (*size[::-1], *(3,) * (mode == "RGB")), np.uint8)
    picture = Image.fromarray(values)
    if mode == "P":
        picture.putpalette(PALETTE.tobytes())
    picture.info["icc_profile"] = b"of the photograph"
    write_png(tmp_path / "a.png", picture)
    with Image.open(tmp_path / "a.png") as read:
        assert read.mode == mode
        assert "icc_profile" not in read.info  # heat maps have colors of their own
        np.testing.assert_array_equal(np.asarray(read), values)


def test_overlay_color_depends_only_on_the_value() -> None:
    image = np.zeros((3, 4, 4), np.float32)
    calm, alarm = np.full((4, 4), 0.5), np.full((4, 4), 0.5)
    alarm[3, 3] = 100.0
    assert overlay(image, calm, (0.0, 1.0)).getpixel((0, 0)) == overlay(image, alarm, (0.0, 1.0)).getpixel((0, 0))


def test_overlay_rejects_invalid_shapes_and_opacity() -> None:
    with pytest.raises(ShapeError, match=r"anomaly_map must be \(8, 6\) as the image, but got \(6, 8\)"):
        overlay(np.zeros((3, 8, 6), np.float32), np.zeros((6, 8)), (0.0, 1.0))
    with pytest.raises(ShapeError, match=r"\(8, 6, 3\)"):
        overlay(np.zeros((8, 6, 3), np.float32), np.zeros((8, 6)), (0.0, 1.0))
    with pytest.raises(ShapeError, match="anomaly_map"):
        overlay(np.zeros((3, 8, 6), np.float32), np.zeros((1, 8, 6)), (0.0, 1.0))
    with pytest.raises(ConfigError, match="opacity"):
        overlay(np.zeros((3, 8, 6), np.float32), np.zeros((8, 6)), (0.0, 1.0), opacity=1.5)


def test_to_picture_keeps_pixel_values() -> None:
    image = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(1))
    picture = to_picture(image)
    assert picture.size == (7, 5)
    np.testing.assert_allclose(np.asarray(picture).transpose(2, 0, 1) / 255.0, image.numpy(), atol=0.5 / 255 + 1e-6)
