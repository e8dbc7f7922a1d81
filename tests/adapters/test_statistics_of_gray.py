"""with_statistics takes gray images."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from semflow.adapters import with_statistics
from semflow.errors import ShapeError
from semflow.flows import coupling_stack
from semflow.nn import FixedVariance, InverseGammaVariance, Statistics, StatisticsNetwork, VarianceHead

MAPS, GRAY = torch.randn(2, 6, 8, 8), torch.rand(2, 1, 32, 32)


def test_gray_images_equal_repeated_ones() -> None:
    torch.manual_seed(0)
    model = with_statistics(coupling_stack(6, 2), InverseGammaVariance(StatisticsNetwork(filters=8, stride=4)))
    mask = torch.zeros(2, 32, 32)
    mask[:, :8] = 1
    color = GRAY.repeat(1, 3, 1, 1)
    for compute in (
        lambda image: model.anomaly_map(MAPS, image=image),
        lambda image: model.log_prob(MAPS, image=image),
        lambda image: model.loss(MAPS, image=image, anomaly_mask=mask).total,
    ):
        assert torch.equal(compute(GRAY), compute(color))


def test_head_sees_three_channels() -> None:
    seen = []

    class Own(VarianceHead):
        def forward(self, images: Tensor, features: Sequence[Tensor]) -> list[Statistics]:
            seen.append(tuple(images.shape))
            return FixedVariance(1.0)(images, features)

    with_statistics(coupling_stack(6, 2), Own()).anomaly_map(MAPS, image=GRAY)
    assert seen == [(2, 3, 32, 32)]


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_images_with_regions_are_refused(channels: int) -> None:
    model = with_statistics(coupling_stack(6, 2), InverseGammaVariance(StatisticsNetwork(filters=8, stride=4)))
    with pytest.raises(ShapeError, match="image must"):
        model.anomaly_map(MAPS, image=torch.ones(2, channels, 32, 32))
