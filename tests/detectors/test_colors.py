"""The color range: unseen normal images stay uncolored, and defects do not."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.small_detector import make_images
from semflow.app.report import heat_colors, overlay
from semflow.detectors.colors import LEFT_OUT, SEEN, UNSEEN, WORST, color_range, sample_pixels
from semflow.errors import ConfigError
from semflow.functional import gaussian_blur, gaussian_kernel
from semflow.training import calibrate


def normal_maps(images: int, seed: int, spread: float = 0.3) -> Tensor:
    """Return smooth maps (n, 48, 48) with a skewed level per image, as parts that differ have."""
    generator = torch.Generator().manual_seed(seed)
    smooth = gaussian_blur(torch.randn(images, 48, 48, generator=generator), gaussian_kernel(2.0))
    level = torch.randn(images, 1, 1, generator=generator).exp() * spread
    return smooth / smooth.std() + level


def share(maps: Tensor, bounds: tuple[float, float]) -> Tensor:
    return (maps > bounds[0]).float().mean((1, 2))


@pytest.mark.parametrize("spread", [0.0, 0.1])
@pytest.mark.parametrize("images", [4, 9, 12, 19, 50, 99])
def test_pixels_of_later_normal_images_stay_uncolored_on_average(images, spread) -> None:
    shares = []
    for seed in range(40):
        seen, later = normal_maps(images + 30, seed, spread).split([images, 30])
        shares.append(share(later, color_range(sample_pixels(seen))).mean().item())
    assert np.mean(shares) <= UNSEEN + 2 * np.std(shares) / math.sqrt(40)
    assert np.mean(shares) <= 0.01
    if images >= 9:  # no lower than needed, which would cost color on defects
        assert np.mean(shares) >= UNSEEN / 3


@given(st.integers(1, 60), st.integers(0, 10**6), st.sampled_from([SEEN, LEFT_OUT, UNSEEN]), st.floats(1e-3, 1e3))
@settings(max_examples=50)
def test_share_of_the_images_themselves(images, seed, fraction, unit) -> None:
    maps = normal_maps(images, seed) * unit
    low, high = color_range(sample_pixels(maps), fraction)
    assert low < high
    if images < WORST:
        assert low == maps.max()
    assert share(maps, (low, high)).mean() <= fraction * (images + 1 - WORST) / images + 1e-3 or images < WORST
    other = color_range(sample_pixels(maps.flip(0)), fraction)
    assert other == (low, high)  # whatever the order of the images
    shifted = color_range(sample_pixels(maps + unit), fraction)
    assert shifted == pytest.approx((low + unit, high + unit), rel=1e-3, abs=1e-3 * unit)


def test_defects_beyond_normal_maps_have_the_last_color() -> None:
    maps = normal_maps(30, seed=0)
    low, high = color_range(sample_pixels(maps))
    defect = maps[0].clone()
    defect[10:20, 10:20] = maps.median() + 1.5 * (low - maps.median())
    assert high <= defect[15, 15]
    image = torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(0))
    drawn = np.asarray(overlay(image, defect, (low, high), opacity=1.0))
    assert (drawn[10:20, 10:20] == heat_colors(np.float32(1.0))).all()


def test_pixels_up_to_the_first_value_are_those_of_the_image() -> None:
    maps = normal_maps(20, seed=1)
    bounds = color_range(sample_pixels(maps[:19]))
    image = torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(0))
    values = maps[19].clone()
    values[0, :3] = torch.tensor([bounds[0], float(np.nextafter(np.float32(bounds[0]), np.float32(-9e9))), -torch.inf])
    values[5:15] = sum(bounds) / 2
    colored = (values > bounds[0]).numpy()
    original, drawn = (np.asarray(overlay(image, values, bounds, opacity=x)) for x in (0.0, 1.0))
    assert not colored[0, :3].any()
    assert colored[5:15].all()
    assert (drawn == original)[~colored].all()
    assert (drawn != original).any(2)[5:15].all()


@pytest.mark.parametrize("value", [0.0, -3.0, 1e6])
def test_maps_of_one_value_have_a_range(value) -> None:
    low, high = torch.tensor(color_range(sample_pixels(torch.full((4, 8, 8), value)))).tolist()
    assert low == value < high


def test_calibration_images_set_the_range_and_change_no_map(build, images) -> None:
    detector = build().eval()
    detector.fit_score([torch.stack([s.image for s in images])])
    trained = detector.map_range
    held = make_images(12, seed=3)
    before = detector.predict(torch.stack([s.image for s in held]))
    calibrate(detector, held, batch_size=5)
    after = detector.predict(torch.stack([s.image for s in held]))
    assert torch.equal(before.anomaly_map, after.anomaly_map)
    assert detector.map_range != trained
    assert detector.map_range == pytest.approx(color_range(sample_pixels(after.anomaly_map)), rel=1e-5)
    kept = detector.map_range
    detector.calibration.set_rate(0.2)
    with pytest.raises(ConfigError, match="at least 9 images"):
        calibrate(detector, make_images(3, seed=4))
    assert detector.map_range == kept
    detector.fit_score([torch.stack([s.image for s in images])])
    assert detector.map_range == trained
