"""Conversions between maps and locations, and masks on the grid of a feature map."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semflow.errors import ConfigError, ShapeError
from semflow.functional import from_locations, mask_to_grid, to_locations

sizes = st.integers(1, 40)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=30)
def test_to_locations_is_row_major(batch, channels, height, width):
    x = torch.arange(batch * channels * height * width, dtype=torch.float32).view(batch, channels, height, width)
    rows = to_locations(x)
    assert rows.shape == (batch * height * width, channels)
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                assert torch.equal(rows[(b * height + i) * width + j], x[b, :, i, j])
    back = from_locations(rows, (height, width))
    assert torch.equal(back, x)
    last = from_locations(rows.contiguous(), (height, width))
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_channels_last_maps_are_not_copied():
    x = torch.randn(2, 5, 3, 4).to(memory_format=torch.channels_last)
    rows = to_locations(x)
    back = from_locations(rows, (3, 4))
    assert rows.data_ptr() == back.data_ptr() == x.data_ptr()
    assert rows.is_contiguous()
    x[1, 2, 0, 3] = 100.0
    assert rows[1 * 12 + 3, 2] == back[1, 2, 0, 3] == 100.0
    assert to_locations(x.contiguous()).data_ptr() != x.data_ptr()


@pytest.mark.parametrize("shape", [(11, 5), (2, 12, 5), (24,)])
def test_from_locations_rejects_wrong_sizes(shape):
    with pytest.raises(ShapeError, match=r"^x must be \(B \* 3 \* 4, C\)"):
        from_locations(torch.zeros(shape), (3, 4))


# Masks


def cells(pixels, cells):
    """Return start and end of every cell of `pixels` pixels; cells may share pixels."""
    return [(i * pixels // cells, -(-(i + 1) * pixels // cells)) for i in range(cells)]


def slow_grid(mask, size, mode):
    grid = torch.zeros(mask.shape[0], *size, dtype=torch.bool)
    for i, (top, bottom) in enumerate(cells(mask.shape[1], size[0])):
        for j, (left, right) in enumerate(cells(mask.shape[2], size[1])):
            cell = mask[:, top:bottom, left:right] if mode == "max" else mask[:, top : top + 1, left : left + 1]
            grid[:, i, j] = cell.flatten(1).any(1)
    return grid


@given(st.tuples(sizes, sizes), st.tuples(sizes, sizes), st.sampled_from([0.02, 0.3]), st.integers(0, 1000))
@settings(max_examples=50)
def test_mask_to_grid_reads_first_or_any_pixel_of_each_cell(pixels, size, density, seed):
    mask = torch.rand(2, *pixels, generator=torch.Generator().manual_seed(seed)) < density
    nearest, largest = mask_to_grid(mask, size), mask_to_grid(mask, size, "max")
    assert nearest.dtype == largest.dtype == torch.bool
    assert torch.equal(nearest, slow_grid(mask, size, "nearest"))
    assert torch.equal(largest, slow_grid(mask, size, "max"))
    assert (largest >= nearest).all()
    assert torch.equal(largest.flatten(1).any(1), mask.flatten(1).any(1))  # max keeps every region


def test_mask_to_grid_uses_exact_cell_borders():
    """For 26 rows and 22 cells, cell 11 starts at row 13, but 11 * float32(26 / 22) < 13."""
    mask = torch.zeros(2, 26, 26, dtype=torch.bool)
    mask[0, 12], mask[1, 13] = True, True
    nearest, largest = mask_to_grid(mask, (22, 22)), mask_to_grid(mask, (22, 22), "max")
    assert not nearest[0, 11].any()
    assert nearest[1, 11].all()
    assert (largest >= nearest).all()


def test_max_keeps_thin_scars_that_nearest_loses():
    mask = torch.zeros(1, 256, 256, dtype=torch.bool)
    mask[0, 100:140, 101:103] = True
    assert not mask_to_grid(mask, (16, 16)).any()
    assert mask_to_grid(mask, (16, 16), "max")[0].nonzero().tolist() == [[6, 6], [7, 6], [8, 6]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_mask_may_have_any_dtype(dtype):
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 4, 4] = True
    for mode in ("nearest", "max"):
        assert torch.equal(mask_to_grid(mask.to(dtype), (4, 4), mode), mask_to_grid(mask, (4, 4), mode))
    assert mask_to_grid(mask * 0.01, (4, 4)).sum() == 1
    assert mask_to_grid(-mask.float(), (4, 4), "max").sum() == 0


def test_mask_to_grid_rejects_invalid_arguments():
    with pytest.raises(ShapeError, match=r"^mask must be \(B, H, W\), but got \(8, 8\)"):
        mask_to_grid(torch.zeros(8, 8), (2, 2))
    with pytest.raises(ConfigError, match=r"^resize must be nearest or max, but got 'mean'"):
        mask_to_grid(torch.zeros(1, 8, 8), (2, 2), "mean")
