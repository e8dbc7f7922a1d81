"""Blemishes: exact masks, contents by their definitions, sizes, reproducible draws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from semflow.errors import ConfigError, ShapeError
from semflow.synthesis import BLEMISH_KINDS, Blemishes, CutPaste, Synthesis

FULL = Blemishes(opacity=(1.0, 1.0), min_change=0.0)


def noise(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((3, rows, columns), np.float32))


def inner(mask: torch.Tensor) -> torch.Tensor:
    """Return the pixels of a mask that are more than three pixels from its edge."""
    return torch.from_numpy(ndimage.binary_erosion(mask.numpy(), iterations=3))


@given(
    st.sampled_from(BLEMISH_KINDS),
    st.sampled_from([(128, 128), (64, 96), (200, 33), (300, 3), (16, 16), (5, 7), (2, 2), (1, 9), (1, 1)]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([Blemishes(), Blemishes(min_change=0.0), FULL, Blemishes(opacity=(1e-3, 1e-3))]),
)
@settings(max_examples=200, deadline=None)
def test_blemish_changes_only_its_mask(kind: str, size: tuple[int, int], seed: int, blemishes: Blemishes) -> None:
    image, donor = noise(*size, 1), noise(*size, 2)
    kept = image.clone(), donor.clone()
    out, mask = blemishes(image, donor, kind, np.random.default_rng(seed))
    assert (out.dtype, out.shape) == (torch.float32, image.shape)
    assert (mask.dtype, mask.shape) == (torch.bool, size)
    assert mask.any()
    assert torch.equal(out[:, ~mask], image[:, ~mask])
    assert out.min() >= 0.0
    assert out.max() <= 1.0
    assert torch.equal(image, kept[0])
    assert torch.equal(donor, kept[1])
    again = blemishes(image, donor, kind, np.random.default_rng(seed))
    assert torch.equal(out, again[0])
    assert torch.equal(mask, again[1])


@pytest.mark.parametrize("kind", BLEMISH_KINDS)
def test_blemish_changes_all_of_its_mask(kind: str) -> None:
    """On noise, the old and new content of a pixel are equal by accident only, and pixels clipped by `light`."""
    image, donor = noise(96, 96, 1), noise(96, 96, 2)
    for seed in range(20):
        out, mask = Blemishes()(image, donor, kind, np.random.default_rng(seed))
        assert (out != image).any(0)[mask].float().mean() > 0.99
        assert (out - image)[:, mask].abs().mean() >= 0.02


@pytest.mark.parametrize("size", [(256, 256), (64, 64), (64, 200)])
def test_sizes_scale_with_the_shorter_side(size: tuple[int, int]) -> None:
    scale = min(size) / 256
    image, donor = torch.zeros(3, *size), torch.ones(3, *size)
    masks = [FULL(image, donor, "foreign", np.random.default_rng(seed))[1] for seed in range(150)]
    areas = np.array([int(mask.sum()) for mask in masks]) / scale**2
    # From the smallest ellipse, pi 3.5^2 less its soft border, to a blob, which 2.5 radii of its window contain.
    assert areas.min() > 15
    assert areas.max() < 2 * np.pi * 51**2
    assert np.quantile(areas, 0.25) < 700
    assert np.quantile(areas, 0.9) > 2000
    # Everywhere in the image.
    centers = torch.stack([torch.nonzero(mask).double().mean(0) / torch.tensor(size) for mask in masks])
    assert (centers.amin(0) < 0.2).all()
    assert (centers.amax(0) > 0.8).all()


def test_shapes_are_blobs_lines_and_ellipses() -> None:
    """The largest distance to the outside tells a line (thin for its area) from the others."""
    image, donor = torch.zeros(3, 256, 256), torch.ones(3, 256, 256)
    thin = compact = 0
    for seed in range(150):
        mask = FULL(image, donor, "foreign", np.random.default_rng(seed))[1].numpy()
        half = ndimage.distance_transform_edt(np.pad(mask, 1)).max()
        thin += half < 5 and mask.sum() > 12 * half**2
        compact += mask.sum() < 6 * half**2
    assert thin > 30
    assert compact > 30


def test_foreign_content_is_a_turned_and_shifted_donor() -> None:
    """The channels of the donor are its coordinates, so a blemish shows the origin of each pixel."""
    for size, turns in (((64, 64), 4), ((64, 96), 2)):
        rows, columns = np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij")
        donor = torch.from_numpy(np.float32([rows / 256, columns / 256, np.ones(size)]))
        steps = set()
        for seed in range(60):
            out, mask = FULL(torch.zeros(3, *size), donor, "foreign", np.random.default_rng(seed))
            solid = mask & (out[2] == 1.0)
            origin = (out[:2] * 256).round().int()
            right = solid[:, :-1] & solid[:, 1:]
            if right.any():
                found, counts = (origin[:, :, 1:] - origin[:, :, :-1])[:, right].T.unique(dim=0, return_counts=True)
                steps.add(tuple(found[counts.argmax()].tolist()))  # the others cross the seam of the shift
        assert steps == {4: {(0, 1), (0, -1), (1, 0), (-1, 0)}, 2: {(0, 1), (0, -1)}}[turns]


def test_shifted_content_comes_from_the_image_itself() -> None:
    image = noise(64, 64, 3)
    places = {
        tuple(pixel): (r, c) for r, row in enumerate(image.permute(1, 2, 0).tolist()) for c, pixel in enumerate(row)
    }
    for seed in range(20):
        out, mask = FULL(image, torch.zeros(3, 64, 64), "shifted", np.random.default_rng(seed))
        shifts = set()
        for r, c in torch.nonzero(mask).tolist():
            origin = places.get(tuple(out[:, r, c].tolist()))
            if origin is not None:
                shifts.add(((r - origin[0]) % 64, (c - origin[1]) % 64))
        assert len(shifts) <= 1, "one shift for all opaque pixels"
        for shift in shifts:
            assert all(4 <= min(step, 64 - step) <= 32 for step in shift)


def test_color_is_one_color_and_half_of_the_time_gray() -> None:
    image, grays = torch.zeros(3, 128, 128), 0
    for seed in range(100):
        out, _ = FULL(image, image, "color", np.random.default_rng(seed))
        color = out.amax((1, 2))  # the most opaque pixel on black
        assert torch.allclose(out, color[:, None, None] * (out[:1] / color[0]), atol=1e-5)
        grays += bool((color == color[0]).all())
    assert 30 < grays < 70


def test_blur_lowers_the_contrast_and_keeps_the_mean() -> None:
    image, donor = noise(128, 128, 5), torch.zeros(3, 128, 128)
    for seed in range(20):
        out, mask = Blemishes(opacity=(0.1, 0.1))(image, donor, "blur", np.random.default_rng(seed))
        solid = inner(mask)
        if solid.sum() > 50:
            assert out[:, solid].std() < 0.3 * image[:, solid].std()  # opaque, whatever the opacity
            assert abs(out[:, solid].mean() - 0.5) < 0.05


def test_light_is_a_gain_and_an_offset() -> None:
    image, fits = 0.4 + 0.1 * noise(128, 128, 6), []
    for seed in range(80):
        out, mask = FULL(image, image, "light", np.random.default_rng(seed))
        solid = inner(mask)
        inside = (out > 0) & (out < 1) & solid
        if inside.sum() > 100:
            x, y = image[inside].double(), out[inside].double()
            design = torch.stack([x, torch.ones_like(x)], 1)
            fit = torch.linalg.lstsq(design, y[:, None]).solution
            if (design @ fit - y[:, None]).abs().max() < 1e-5:  # without pixels of the soft border
                fits.append(fit[:, 0].tolist())
    gains, offsets = np.array(fits).T
    assert len(fits) > 10
    assert (gains.min() >= 0.4 - 1e-3) & (gains.max() <= 1.8 + 1e-3) & (np.ptp(gains) > 0.7)
    assert (np.abs(offsets) <= 0.3 + 1e-3).all()


def test_opacity_bounds_the_change() -> None:
    image, donor = torch.zeros(3, 64, 64), torch.ones(3, 64, 64)
    made = [Blemishes()(image, donor, "foreign", np.random.default_rng(seed)) for seed in range(60)]
    peaks = torch.stack([out.max() for out, _ in made])
    assert (peaks >= 0.4 - 1e-6).all()
    assert peaks.min() < 0.5
    assert peaks.max() > 0.9
    # A pixel of the mask has at least a tenth of the opacity.
    assert all((out[0][mask] >= 0.1 * peak - 1e-6).all() for (out, mask), peak in zip(made, peaks, strict=True))


def test_min_change_draws_blemishes_again() -> None:
    """Most of the image is black, so most blurred blemishes change nothing."""
    image = torch.zeros(3, 128, 128)
    image[:, 56:72, 56:72] = 1.0

    def invisible(blemishes: Blemishes) -> int:
        results = [blemishes(image, image, "blur", np.random.default_rng(seed)) for seed in range(40)]
        return sum(float((out - image)[:, mask].abs().mean()) < 0.02 for out, mask in results)

    assert invisible(Blemishes(min_change=0.0)) > 25
    assert invisible(Blemishes()) < invisible(Blemishes(min_change=0.0)) / 2


def test_image_of_one_color_keeps_a_mask() -> None:
    image = torch.full((3, 32, 32), 0.25)
    for kind in ("foreign", "shifted", "blur"):
        out, mask = Blemishes()(image, image, kind, np.random.default_rng(0))
        assert torch.allclose(out, image, atol=1e-6)
        assert mask.any()


def test_kinds_and_the_interface_of_a_synthesis() -> None:
    assert Blemishes().kinds == BLEMISH_KINDS == ("foreign", "shifted", "color", "blur", "light")
    assert not set(BLEMISH_KINDS) & {*CutPaste().kinds, "scar"}
    assert Blemishes(kinds=["blur"]) == Blemishes(kinds=("blur",))  # type: ignore[arg-type]
    assert isinstance(Blemishes(), Synthesis)
    assert isinstance(CutPaste(), Synthesis)


def test_blemishes_reject_invalid_arguments() -> None:
    rng, image = np.random.default_rng(0), torch.zeros(3, 32, 32)
    with pytest.raises(ConfigError, match="foreign, shifted, color, blur, light, but got 'small'"):
        Blemishes()(image, image, "small", rng)
    with pytest.raises(ShapeError, match=r"image must be a float32 .* but got torch.float32 \(1, 32, 32\)"):
        Blemishes()(image[:1], image, "blur", rng)
    with pytest.raises(ShapeError, match="donor must be a float32"):
        Blemishes()(image, (image * 255).to(torch.uint8), "blur", rng)
    with pytest.raises(ShapeError, match="must have one size"):
        Blemishes()(image, torch.zeros(3, 32, 40), "blur", rng)
    for opacity in ((0.0, 1.0), (0.8, 0.4), (0.5, 1.1)):
        with pytest.raises(ConfigError, match="opacity must be two increasing numbers"):
            Blemishes(opacity=opacity)
    for min_change in (-0.1, 1.5):
        with pytest.raises(ConfigError, match="min_change must be between 0 and 1"):
            Blemishes(min_change=min_change)
    for kinds in ((), ("blur", "scar")):
        with pytest.raises(ConfigError, match="kinds must be at least one of foreign, shifted"):
            Blemishes(kinds=kinds)
