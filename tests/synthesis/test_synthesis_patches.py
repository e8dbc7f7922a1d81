"""Shapes, soft borders and colors of patches, compared with independent computations."""

import colorsys
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semflow.synthesis import blend, circle, jitter_colors, rectangle, soft_alpha


@given(st.integers(1, 40), st.integers(1, 60))
def test_rectangle_without_rotation_fills_its_box(height: int, width: int) -> None:
    depth, _, _ = rectangle(height, width)
    assert depth.shape == (height, width)
    assert (depth > 0).all()


@given(st.integers(8, 40), st.integers(8, 60), st.floats(-180, 180))
def test_rotated_rectangle_keeps_its_area_and_fits_its_box(height: int, width: int, angle: float) -> None:
    depth, _, _ = rectangle(height, width, angle)
    mask = depth > 0
    # The number of pixel centers inside differs from the area by at most about half the outline.
    assert abs(int(mask.sum()) - height * width) <= height + width
    radians = math.radians(angle)
    rows = height * abs(math.cos(radians)) + width * abs(math.sin(radians))
    assert abs(mask.shape[0] - rows) <= 1.0


@given(st.floats(4, 40))
def test_circle_has_the_area_of_a_disk(radius: float) -> None:
    depth, _, _ = circle(radius)
    mask = depth > 0
    assert abs(int(mask.sum()) - math.pi * radius**2) <= 2 * math.pi * radius
    np.testing.assert_array_equal(mask, mask[::-1])
    np.testing.assert_array_equal(mask, mask.T)


@pytest.mark.parametrize(("angle", "row_of_right_end"), [(45.0, "low"), (-45.0, "high")])
def test_rectangle_rotates_clockwise_with_its_angle(angle: float, row_of_right_end: str) -> None:
    """A vertical bar rotated by 45 degrees clockwise has its upper end on the right."""
    mask = rectangle(20, 2, angle)[0] > 0
    rows, columns = np.nonzero(mask)
    correlation = np.corrcoef(rows, columns)[0, 1]
    assert correlation < -0.9 if row_of_right_end == "low" else correlation > 0.9


def test_rectangle_is_cropped_to_its_limit_about_the_center() -> None:
    depth, y, x = rectangle(10, 100, 0.0, limit=(8, 40))
    assert depth.shape == (8, 40)
    assert y.mean() == x.mean() == 0.0


@given(st.integers(1, 30), st.integers(1, 30), st.floats(-45, 45), st.floats(0, 8))
def test_alpha_is_zero_outside_and_opaque_inside(height: int, width: int, angle: float, border: float) -> None:
    depth, _, _ = rectangle(height, width, angle)
    alpha = soft_alpha(depth, border)
    assert alpha.dtype == np.float32
    assert (alpha.min(), alpha.max()) >= (0.0, 0.99)
    assert alpha.max() <= 1.0
    if (depth > 0).any():
        assert not alpha[depth <= 0].any()
    assert not ((alpha > 0) & (alpha < 0.1)).any()  # invisible changes are neither made nor marked
    deep = depth >= border
    assert (alpha[deep & (depth > 0)] == 1.0).all()


@pytest.mark.parametrize("border", [0.0, 1e-9, 0.5])
@pytest.mark.parametrize("depth", [-0.3, 0.0, 1e-9, 6e-8, 1e-6])
def test_alpha_of_a_tiny_shape_is_opaque_in_its_deepest_pixel(depth: float, border: float) -> None:
    alpha = soft_alpha(np.float32([[-0.5, depth, -0.4], [-0.5, -0.5, -0.5]]), border)
    assert alpha.tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_alpha_increases_with_depth_and_is_binary_without_border() -> None:
    depth = np.linspace(-2, 8, 101, dtype=np.float32)[None]
    assert (np.diff(soft_alpha(depth, 4.0)[0]) >= 0).all()
    assert set(np.unique(soft_alpha(depth, 0.0))) == {0.0, 1.0}


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_blend_stays_in_range_and_changes_only_masked_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Rounding could leave [0, 1] for values at and near its ends.
    pool = np.float32([0.0, 1.0, 1e-30, 2**-25, np.nextafter(np.float32(1), np.float32(0)), 0.5, 1 / 3])
    image = torch.from_numpy(rng.choice(pool, (3, 12, 12)))
    patch, alpha = rng.choice(pool, (3, 5, 7)), rng.choice(np.append(pool, rng.random(3, np.float32)), (5, 7))
    before = image.clone()
    out, anomaly_mask = blend(image, patch, alpha, 3, 4)
    assert torch.equal(image, before)
    assert out.min() >= 0.0
    assert out.max() <= 1.0
    assert torch.equal(out[:, ~anomaly_mask], image[:, ~anomaly_mask])
    assert int(anomaly_mask.sum()) == int((alpha > 0).sum())
    lerp = torch.lerp(image[:, 3:8, 4:11], torch.from_numpy(patch), torch.tensor(alpha))
    assert torch.allclose(out[:, 3:8, 4:11], lerp, atol=1e-6)


def luma(rgb: np.ndarray) -> np.ndarray:
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


@pytest.fixture
def patch() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.35, 0.65, (3, 6, 9)).astype(np.float32)


def test_jitter_colors_changes_brightness_contrast_and_saturation(patch: np.ndarray) -> None:
    np.testing.assert_array_equal(jitter_colors(patch, 0, 0, 0, 0), patch)
    np.testing.assert_allclose(jitter_colors(patch, 0.1, 0, 0, 0), patch * 1.1, rtol=1e-6)
    contrast = jitter_colors(patch, 0, 0.1, 0, 0)
    middle = luma(patch).mean()
    np.testing.assert_allclose(contrast, middle + 1.1 * (patch - middle), atol=1e-6)
    saturated = jitter_colors(patch, 0, 0, 0.1, 0)
    np.testing.assert_allclose(saturated, luma(patch) + 1.1 * (patch - luma(patch)), atol=1e-6)


def test_jitter_colors_rotates_channels_by_a_third_of_a_turn(patch: np.ndarray) -> None:
    np.testing.assert_allclose(jitter_colors(patch, 0, 0, 0, 1 / 3), patch[[2, 0, 1]], atol=1e-6)


@pytest.mark.parametrize("turns", [-0.1, 0.05, 0.1])
def test_jitter_colors_changes_hue_approximately_as_in_hsv(turns: float) -> None:
    rgb = np.float32([0.7, 0.3, 0.4])
    out = jitter_colors(rgb[:, None, None], 0, 0, 0, turns)[:, 0, 0]
    before, after = colorsys.rgb_to_hsv(*rgb.tolist())[0], colorsys.rgb_to_hsv(*out.tolist())[0]
    assert abs((after - before - turns + 0.5) % 1.0 - 0.5) < 0.02


@given(*[st.floats(-0.3, 0.3)] * 4, st.floats(0, 1))
def test_jitter_colors_keeps_gray_and_stays_in_range(b: float, c: float, s: float, h: float, level: float) -> None:
    gray = np.full((3, 2, 3), level, dtype=np.float32)
    gray[:, 0, 0] = 1.0
    out = jitter_colors(gray, b, c, s, h)
    assert out.dtype == np.float32
    assert out.min() >= 0.0
    assert out.max() <= 1.0
    np.testing.assert_allclose(out[0], out[1], atol=1e-6)
    np.testing.assert_allclose(out[1], out[2], atol=1e-6)
