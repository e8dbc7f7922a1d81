"""Scores, colors and metrics with a region of interest: what is outside has no part in them."""

import pytest
import torch

from semflow.bases import Memory, PositionGaussian
from semflow.detectors import Scorer
from semflow.detectors.colors import color_range, sample_pixels
from semflow.errors import DataError
from semflow.functional import covered, grown, mask_to_grid
from semflow.metrics import aupro, auroc

OPTIONS = [
    {"aggregate": "exp"},
    {"aggregate": "exp", "align_corners": True, "top": 0.1},
    {"aggregate": "sum", "top": 0.0, "blur": 4.0, "interpolation": "nearest"},
    {"aggregate": "sum", "top": 0.05, "blur": 1.0, "standardize": True},
    {"aggregate": "product", "image_aggregate": "sum"},
]


def inside_of(height: int, width: int, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[:, 0] > 0.45


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", [(48, 64), (50, 50)])
def test_scores_depend_on_what_is_inside_alone(options: dict, size: tuple[int, int]) -> None:
    scorer, inside = Scorer(2, **options), inside_of(*size)
    grids = [(12, 16), (7, 9)]
    maps = [torch.randn(2, *grid) for grid in grids]
    spoiled = [torch.where(covered(inside, x.shape[1:]), x, 1e4 * torch.randn_like(x)) for x in maps]
    a, b = scorer(maps, size, inside), scorer(spoiled, size, inside)
    assert torch.equal(a[1], b[1])
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[0] > -torch.inf, inside)
    whole = torch.ones_like(inside)
    for found, expected in zip(scorer(maps, size, whole), scorer(maps, size), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("top", [0.0, 0.01, 0.3, 1.0])
def test_the_top_fraction_is_of_the_pixels_inside(top: float) -> None:
    inside = inside_of(40, 40)
    scorer = Scorer(1, top=top, aggregate="sum", offset=0.0)
    anomaly_map, score = scorer([torch.randn(2, 10, 10)], (40, 40), inside)
    for values, one, mask in zip(anomaly_map, score, inside, strict=True):
        pixels = values[mask].sort(descending=True).values
        assert one.item() == pytest.approx(pixels[: max(1, round(top * len(pixels)))].mean().item(), rel=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 3), (40, 40)])
def test_covered_is_the_maximum_of_each_cell(size: tuple[int, int]) -> None:
    inside = inside_of(40, 40)
    assert torch.equal(covered(inside, size), mask_to_grid(inside, size, "max"))


def test_grown_keeps_the_inside_and_its_range() -> None:
    values, inside = torch.randn(2, 9, 11), inside_of(9, 11)
    more = grown(values, inside, 30)
    assert torch.equal(more[inside], values[inside])
    for one, old, mask in zip(more, values, inside, strict=True):
        assert old[mask].min() <= one.min() <= one.max() <= old[mask].max() + 1e-6
    assert torch.equal(grown(values, torch.ones_like(inside), 3), values)


def test_colors_come_from_pixels_inside() -> None:
    maps = torch.rand(20, 40, 40)
    inside = torch.zeros(40, 40, dtype=torch.bool)
    inside[:20] = True
    found = color_range(sample_pixels(torch.where(inside, maps, -torch.inf)))
    expected = color_range(sample_pixels(maps[:, :20]))
    assert found == pytest.approx(expected, abs=0.01)


def test_small_regions_are_sampled_as_densely() -> None:
    maps, inside = torch.rand(3, 256, 256), torch.zeros(256, 256, dtype=torch.bool)
    inside[100:130, 40:70] = True
    sampled = sample_pixels(torch.where(inside, maps, -torch.inf))
    assert sampled.shape == sample_pixels(maps).shape
    for row, one in zip(sampled, maps, strict=True):
        assert torch.equal(row[row > -torch.inf][1:].sort().values, one[inside].sort().values)
        assert row[0] == one[inside].max()


def test_metrics_take_pixels_inside() -> None:
    scores, masks, inside = torch.rand(2, 12, 12), torch.rand(2, 12, 12) > 0.8, inside_of(12, 12)
    masks[0], inside[0, :, 6:], inside[1] = False, False, True
    masks[0, 2:5, 4:8] = True
    cut = [(scores[0, :, :6], masks[0, :, :6]), (scores[1], masks[1])]
    inside[0, :, :6] = True
    expected = aupro([s for s, _ in cut], [m for _, m in cut])
    assert aupro(scores, masks, inside=inside) == pytest.approx(expected)
    assert 0 < auroc(scores[inside], masks[inside]) < 1


def test_position_moments_merge_with_one_region_only() -> None:
    inside = inside_of(4, 4)[:1].expand(3, -1, -1)
    z = torch.randn(6, 2, 4, 4)
    whole, first, second = (PositionGaussian().accumulator() for _ in range(3))
    whole.update(z, inside[:1].expand(6, -1, -1))
    first.update(z[:3], inside)
    second.update(z[3:], inside)
    first.merge(second)
    for a, b in zip(first.result(), whole.result(), strict=True):
        torch.testing.assert_close(a, b)
    plain = PositionGaussian().accumulator()
    plain.update(z)
    with pytest.raises(DataError, match="one region of interest"):
        whole.merge(plain)
    with pytest.raises(DataError, match="one region of interest"):
        whole.update(z, ~inside[:1].expand(6, -1, -1))


def test_memories_merge_what_is_inside() -> None:
    inside, z = inside_of(4, 4), torch.randn(2, 3, 4, 4)
    one, other = (Memory().accumulator() for _ in range(2))
    one.update(z[:1], None, inside[:1])
    other.update(z[1:], None, inside[1:])
    one.merge(other)
    vectors, images, _ = one.select()
    assert torch.equal(vectors, z.permute(0, 2, 3, 1)[inside])
    assert torch.equal(images, inside.nonzero()[:, 0])
