"""Networks whose first layer takes one channel, and gray images for networks that take three."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import semflow
from semflow.data import Sample
from semflow.errors import ConfigError
from semflow.features import FrozenFeatures, ImageNormalization, ImagePyramid, PooledViews, TimmFeatures
from semflow.features.timm_module import build
from semflow.recipes import patchcore, sanflow

MEAN, STD = (0.45,), (0.22,)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 4, stride=4), nn.ReLU())


def of_timm() -> nn.Module:
    return build("resnet18", seed=0, pretrained=False, in_chans=1, features_only=True, out_indices=(2, 3))


@pytest.mark.parametrize("make", [small, of_timm])
def test_gray_network_is_measured(make: Any) -> None:
    network = make()
    features = FrozenFeatures.measured(network, 64, mean=MEAN, std=STD)
    assert features.strides == ((4,) if make is small else (8, 16))
    gray = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        expected = network.eval()((gray - MEAN[0]) / STD[0])
    for found, wanted in zip(features(gray), [expected] if isinstance(expected, Tensor) else expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_gray_network_gets_the_gray_level_of_color_images() -> None:
    features = FrozenFeatures.measured(small(), 32, mean=MEAN, std=STD)
    color = torch.rand(2, 3, 32, 32)
    assert torch.equal(features(color)[0], features(color.mean(1, keepdim=True))[0])
    torch.testing.assert_close(features(color)[0], features(color[:, [2, 1, 0]])[0])
    assert not torch.allclose(features(color)[0], features(color[:, :1])[0])


@pytest.mark.parametrize("wrap", [lambda x: x, ImagePyramid, lambda x: PooledViews(x, 3)])
def test_network_of_three_channels_takes_gray_images(wrap: Any) -> None:
    torch.manual_seed(0)
    features = wrap(FrozenFeatures(nn.Conv2d(3, 8, 4, stride=4), channels=(8,), strides=(4,)))
    gray = torch.rand(2, 1, 32, 32)
    for found, expected in zip(features(gray), features(gray.repeat(1, 3, 1, 1)), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("make", [patchcore, sanflow])
def test_recipes_take_a_gray_network(make: Any) -> None:
    network = of_timm() if make is patchcore else nn.Sequential(small(), nn.MaxPool2d(2))
    detector = make(FrozenFeatures.measured(network, 64, mean=MEAN, std=STD), 64)
    good = [Sample(x, 0, None, f"{k}.png") for k, x in enumerate(torch.rand(8, 1, 64, 64))]
    options = {} if make is patchcore else {"epochs": 1, "batch_size": 4}
    semflow.fit(detector, good, device="cpu", progress=False, **options)
    color = torch.rand(2, 3, 64, 64)
    gray = color.mean(1, keepdim=True)
    assert torch.equal(detector.predict(gray).score, detector.predict(gray.repeat(1, 3, 1, 1)).score)
    if make is patchcore:  # the statistics network of sanflow sees colors
        torch.testing.assert_close(detector.predict(color).score, detector.predict(gray).score)


@pytest.mark.parametrize("given", [(MEAN, (0.2, 0.2, 0.2)), ((0.4, 0.4), (0.2, 0.2)), ((), ())])
def test_mean_and_std_have_one_or_three_values(given: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    with pytest.raises(ConfigError, match=r"mean and std must have three values each .* or one"):
        ImageNormalization(*given)


def test_timm_features_name_the_way_to_a_gray_network() -> None:
    with pytest.raises(ConfigError, match=r"must have three values each .*; .* give FrozenFeatures one of timm"):
        TimmFeatures("resnet18", "random", (8,), mean=MEAN, std=STD)


def test_network_of_one_channel_without_mean_is_told_its_input() -> None:
    with pytest.raises(ConfigError, match=r"must map images \(1, 3, 32, 32\)"):
        FrozenFeatures.measured(small(), 32)
    with pytest.raises(ConfigError, match=r"must map images \(1, 1, 32, 32\)"):
        FrozenFeatures.measured(nn.Conv2d(3, 8, 4), 32, mean=MEAN, std=STD)
