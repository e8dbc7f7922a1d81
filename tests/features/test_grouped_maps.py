"""Groups of concatenated maps on one grid."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow.errors import ConfigError
from semflow.features import GroupedMaps


class Maps(nn.Module):
    """Maps of strides 1, 2 and 4, functions of the image."""

    channels, strides = (3, 2, 3), (1, 2, 4)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, F.avg_pool2d(x[:, :2] ** 2, 2), F.avg_pool2d(x, 4)]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def averaged(x: np.ndarray) -> np.ndarray:
    """The mean over 3 x 3 neighbors, which are zero beyond the border."""
    out = np.empty_like(x)
    for i, j in np.ndindex(*x.shape[2:]):
        out[..., i, j] = x[..., max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].sum((2, 3)) / 9
    return out


def halved(x: np.ndarray) -> np.ndarray:
    return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean((3, 5))


def doubled(x: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation at 1/4 and 3/4 between centers, constant beyond the outer ones."""
    before = np.take(x, np.maximum(np.arange(x.shape[axis]) - 1, 0), axis)
    after = np.take(x, np.minimum(np.arange(x.shape[axis]) + 1, x.shape[axis] - 1), axis)
    both = np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    return both.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])


def test_maps_are_averaged_resized_and_concatenated(images: Tensor) -> None:
    features = GroupedMaps(Maps(), ((0,), (1,), (1, 2)), grid=1)
    assert (features.channels, features.strides) == ((3, 2, 5), (2, 2, 2))
    fine, grid, coarse = (averaged(x.double().numpy()) for x in Maps()(images))
    expected = [halved(fine), grid, np.concatenate([grid, doubled(doubled(coarse, 2), 3)], 1)]
    found = features(images)
    assert len(found) == 3
    for x, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(x.double(), torch.from_numpy(truth), rtol=1e-5, atol=1e-6)


def test_any_map_may_be_the_grid(images: Tensor) -> None:
    for grid, size in enumerate(((16, 24), (8, 12), (4, 6))):
        assert [tuple(x.shape) for x in GroupedMaps(Maps(), ((0, 1, 2),), grid)(images)] == [(2, 8, *size)]


def test_images_are_independent_of_the_batch(images: Tensor) -> None:
    features = GroupedMaps(Maps(), ((2, 0),), grid=1)
    assert torch.equal(features(images)[0][1:], features(images[1:])[0])


@pytest.mark.parametrize(("groups", "grid"), [((), 0), (((),), 0), (((0, 3),), 0), (((0,), (-1,)), 0), (((0,),), 3)])
def test_groups_name_maps_that_exist(groups, grid) -> None:
    with pytest.raises(ConfigError, match=r"groups and grid must name maps from 0 to 2, but got"):
        GroupedMaps(Maps(), groups, grid)
