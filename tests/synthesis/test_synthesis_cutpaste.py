"""CutPaste: sizes of the paper, exact masks, reproducible draws."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semflow.errors import ConfigError, ShapeError
from semflow.synthesis import KINDS, CutPaste


def noise(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((3, rows, columns), np.float32))


def box(mask: torch.Tensor) -> tuple[int, int]:
    rows, columns = torch.nonzero(mask, as_tuple=True)
    return int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1


SIZES = {
    "small": ((2, 32), (10, 50)),
    "medium": ((16, 64), (64, 256)),
    "circle": ((20, 50), (20, 50)),
    "scar": ((10, 25), (2, 16)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [256, 128, 64])
def test_patch_sizes_are_those_of_the_paper_scaled_with_the_image(kind: str, side: int) -> None:
    paste = CutPaste(rotation=0.0, border=0.0)
    image, donor = torch.zeros(3, side, side), torch.ones(3, side, side)
    boxes = np.array([box(paste(image, donor, kind, np.random.default_rng(k))[1]) for k in range(150)])
    for axis, (low, high) in enumerate(SIZES[kind]):
        low, high = (max(end * side / 256, 1) for end in (low, high))
        sizes = boxes[:, axis]
        assert sizes.min() >= low - 1
        assert sizes.max() <= high + 1
        # The sizes cover the whole range.
        assert sizes.min() <= low + 0.15 * (high - low) + 1
        assert sizes.max() >= high - 0.15 * (high - low) - 1


def test_patch_sizes_scale_with_the_shorter_side() -> None:
    paste = CutPaste(rotation=0.0, border=0.0)
    image, donor = torch.zeros(3, 64, 512), torch.ones(3, 64, 512)
    widths = [box(paste(image, donor, "medium", np.random.default_rng(k))[1])[1] for k in range(100)]
    assert 16 <= min(widths) < 24
    assert 56 < max(widths) <= 64


@given(
    st.sampled_from(KINDS),
    st.sampled_from([(256, 256), (128, 128), (64, 64), (64, 96), (200, 33), (16, 16), (5, 7), (1, 1)]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([CutPaste(), CutPaste(rotation=0.0), CutPaste(jitter=0.0, border=0.0), CutPaste(rotation=180.0)]),
)
@settings(max_examples=150, deadline=None)
def test_mask_is_true_where_the_image_changed(kind: str, size: tuple[int, int], seed: int, paste: CutPaste) -> None:
    """Every pasted pixel changes, because the image is black and the donor white."""
    image, donor = torch.zeros(3, *size), torch.ones(3, *size)
    out, anomaly_mask = paste(image, donor, kind, np.random.default_rng(seed))
    assert anomaly_mask.dtype == torch.bool
    assert anomaly_mask.shape == size
    assert anomaly_mask.any()
    assert torch.equal((out != image).any(0), anomaly_mask)
    assert out.min() >= 0.0
    assert out.max() <= 1.0
    assert out.max() > 0.7  # some pixel is opaque, up to jitter


@given(st.sampled_from(KINDS), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_paste_changes_neither_inputs_nor_unmasked_pixels(kind: str, seed: int) -> None:
    image, donor = noise(96, 64, 1), noise(96, 64, 2)
    kept = image.clone(), donor.clone()
    out, anomaly_mask = CutPaste()(image, donor, kind, np.random.default_rng(seed))
    assert torch.equal(image, kept[0])
    assert torch.equal(donor, kept[1])
    assert torch.equal(out[:, ~anomaly_mask], image[:, ~anomaly_mask])
    again = CutPaste()(image, donor, kind, np.random.default_rng(seed))
    assert torch.equal(out, again[0])
    assert torch.equal(anomaly_mask, again[1])


def test_paste_without_rotation_copies_donor_pixels() -> None:
    """Without jitter, rotation and border, a patch equals a window of the donor up to flips."""
    image, donor = torch.zeros(3, 64, 64), noise(64, 64, 3)
    paste = CutPaste(jitter=0.0, rotation=0.0, border=0.0)
    flips = set()
    for seed in range(24):
        out, mask = paste(image, donor, "small", np.random.default_rng(seed))
        rows, columns = torch.nonzero(mask, as_tuple=True)
        patch = out[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        for axes in ((), (1,), (2,), (1, 2)):
            windows = donor.unfold(1, patch.shape[1], 1).unfold(2, patch.shape[2], 1)
            if (windows == patch.flip(axes)[:, None, None]).all(dim=(0, -2, -1)).any():
                flips.add(axes)
                break
        else:
            pytest.fail(f"seed {seed}: the patch is not in the donor")
    assert flips == {(), (1,), (2,), (1, 2)}


@pytest.mark.parametrize("kind", ["small", "medium", "scar", "circle"])
def test_shape_and_content_rotate_together_without_scaling(kind: str) -> None:
    """The channels of the donor are its coordinates, so a patch shows the origin of each pixel."""
    rows, columns = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    donor = torch.stack([rows, columns, torch.full_like(rows, 255.0)]) / 255
    paste, angles = CutPaste(jitter=0.0, border=0.0), []
    for seed in range(40):
        out, mask = paste(torch.zeros(3, 256, 256), donor, kind, np.random.default_rng(seed))
        places = torch.nonzero(mask).double()
        origins = out[:2, mask].T.double() * 255
        if len(places) < 100:
            continue
        # origin = place @ turn + shift with an orthogonal turn: a rotation without scaling or distortion.
        low, high = origins.amin(0), origins.amax(0)
        inner = ((origins > low + 0.01) & (origins < high - 0.01)).all(1)  # the crop repeats its outermost half pixel
        design = torch.cat([places, torch.ones(len(places), 1, dtype=torch.float64)], 1)[inner]
        fit = torch.linalg.lstsq(design, origins[inner]).solution
        turn = fit[:2]
        assert (design @ fit - origins[inner]).abs().max() < 0.02
        assert torch.allclose(turn @ turn.T, torch.eye(2, dtype=torch.float64), atol=0.02)
        angle = float(torch.rad2deg(torch.atan2(turn[0, 1], turn[0, 0]))) % 180  # flips rotate by 180 degrees or mirror
        angles.append(min(angle, 180 - angle))
        if kind != "circle":  # the origin is a filled upright rectangle
            assert len(places) > 0.85 * float((high - low + 1).prod())
    assert max(angles) <= 45.5
    assert max(angles) > 30
    assert min(angles) < 10


def test_min_change_draws_patches_again() -> None:
    """Most of the image and donor is black, so most patches change nothing."""
    image = torch.zeros(3, 128, 128)
    image[:, 56:72, 56:72] = 1.0
    plain, visible = CutPaste(jitter=0.0), CutPaste(jitter=0.0, min_change=0.05)

    def invisible(paste: CutPaste) -> int:
        results = [paste(image, image, "small", np.random.default_rng(seed)) for seed in range(60)]
        return sum(float((out - image)[:, mask].abs().mean()) < 0.05 for out, mask in results)

    assert invisible(plain) > 30
    assert invisible(visible) < invisible(plain) / 2


def test_paste_rejects_invalid_arguments() -> None:
    rng, image = np.random.default_rng(0), torch.zeros(3, 32, 32)
    with pytest.raises(ConfigError, match="small, medium, circle, scar, but got 'square'"):
        CutPaste()(image, image, "square", rng)
    with pytest.raises(ShapeError, match=r"image must be a float32 .* but got torch.float32 \(1, 32, 32\)"):
        CutPaste()(image[:1], image, "small", rng)
    with pytest.raises(ShapeError, match="donor must be a float32"):
        CutPaste()(image, (image * 255).to(torch.uint8), "small", rng)
    with pytest.raises(ShapeError, match="must have one size"):
        CutPaste()(image, torch.zeros(3, 32, 40), "small", rng)
    for option in ("jitter", "rotation", "border", "min_change"):
        with pytest.raises(ConfigError, match=f"{option} must be between 0"):
            CutPaste(**{option: -0.5})


def test_paste_takes_less_than_five_milliseconds() -> None:
    """A patch takes about half a millisecond of CPU time at 256 px; the limit allows for slow machines."""
    image, donor, rng = noise(256, 256, 0), noise(256, 256, 1), np.random.default_rng(0)
    paste, times = CutPaste(), []
    for _ in range(5):
        start = time.thread_time()
        for kind in KINDS:
            paste(image, donor, kind, rng)
        times.append((time.thread_time() - start) / len(KINDS))
    assert min(times) < 0.005
