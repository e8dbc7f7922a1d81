"""Concatenated maps and random channels."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow.errors import ConfigError
from semflow.features import ConcatenatedMaps, RandomChannels, average_pool


class Maps(nn.Module):
    """Maps of strides 2, 1 and 4, functions of the image."""

    channels, strides = (3, 6, 3), (2, 1, 4)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(x, 2), torch.cat([x, x**2], 1), F.avg_pool2d(x, 4)]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def test_nearest_maps_repeat_coarse_locations(images: Tensor) -> None:
    features = ConcatenatedMaps(Maps(), "nearest")
    (found,) = features(images)
    half, full, quarter = Maps()(images)
    repeated = [half.repeat_interleave(2, 2).repeat_interleave(2, 3), full]
    repeated.append(quarter.repeat_interleave(4, 2).repeat_interleave(4, 3))
    assert torch.equal(found, torch.cat(repeated, 1))
    assert (features.channels, features.strides) == ((12,), (1,))


def test_bilinear_maps_interpolate_between_centers_of_locations(images: Tensor) -> None:
    (found,) = ConcatenatedMaps(Maps())(images)
    half = Maps()(images)[0].double()
    # In the middle rows and columns of a map, 1/4 and 3/4 of the nearest two.
    row = 0.75 * half[:, :, 1] + 0.25 * half[:, :, 0]
    expected = 0.25 * row[:, :, 1] + 0.75 * row[:, :, 2]
    torch.testing.assert_close(found[:, :3, 2, 4].double(), expected, rtol=1e-6, atol=1e-6)


def test_smoothing_averages_with_zeros_beyond_the_border(images: Tensor) -> None:
    (found,) = ConcatenatedMaps(Maps(), smoothing=3)(images)
    full = Maps()(images)[1]
    torch.testing.assert_close(found[:, 3:9, 0, 0], full[:, :, :2, :2].sum((2, 3)) / 9)
    torch.testing.assert_close(found[:, 3:9, 3, 3], full[:, :, 2:5, 2:5].mean((2, 3)))


def test_zeros_beyond_the_border_are_counted_only_if_asked() -> None:
    ones = [torch.ones(1, 1, 4, 4)]
    assert average_pool(ones)[0].eq(1).all()
    torch.testing.assert_close(average_pool(ones, zeros_beyond=True)[0][0, 0, 0, 0], torch.tensor(4 / 9))


def test_random_channels_depend_on_the_seed_alone(images: Tensor) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    features = RandomChannels(ConcatenatedMaps(Maps()), 5, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(features.index, torch.randperm(12, generator=torch.Generator().manual_seed(7))[:5])
    assert torch.equal(features(images)[0], ConcatenatedMaps(Maps())(images)[0][:, features.index])
    assert (features.channels, features.strides) == ((5,), (1,))
    assert not torch.equal(RandomChannels(ConcatenatedMaps(Maps()), 5, seed=8).index, features.index)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_channels_are_those_of_all_maps_that_are_concatenated(images: Tensor, count: int) -> None:
    for seed in range(6):
        whole = ConcatenatedMaps(Maps(), "bilinear", smoothing=3)
        features = RandomChannels(whole, count, seed)
        torch.testing.assert_close(features(images)[0], whole(images)[0][:, features.index], rtol=0, atol=0)


def test_channels_of_a_single_map_are_chosen_too(images: Tensor) -> None:
    whole = RandomChannels(ConcatenatedMaps(Maps()), 8)
    features = RandomChannels(whole, 5)
    assert torch.equal(features(images)[0], whole(images)[0][:, features.index])


def test_index_of_channels_is_saved(images: Tensor) -> None:
    features, other = (RandomChannels(ConcatenatedMaps(Maps()), 5, seed=seed) for seed in (1, 2))
    assert features.state_dict().keys() == {"index"}
    other.load_state_dict(features.state_dict())
    assert torch.equal(other.index, features.index)
    assert torch.equal(other(images)[0], features(images)[0])


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match="features must have one map, but got 3; use ConcatenatedMaps"):
        RandomChannels(Maps(), 2)
    with pytest.raises(ConfigError, match="count must be between 1 and the 12 channels, but got 13"):
        RandomChannels(ConcatenatedMaps(Maps()), 13)
    with pytest.raises(ConfigError, match="smoothing must be an odd number"):
        ConcatenatedMaps(Maps(), smoothing=2)
    with pytest.raises(ConfigError, match="resize must be nearest or bilinear"):
        ConcatenatedMaps(Maps(), resize="cubic")
