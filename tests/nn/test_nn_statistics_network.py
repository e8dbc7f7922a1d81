"""Statistics networks: the published architecture, output sizes and invariances."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow.errors import ConfigError
from semflow.nn import FeatureStatisticsNetwork, StatisticsNetwork


@pytest.fixture(autouse=True)
def _seeded_parameters() -> Iterator[None]:
    """Seed torch's global generator, from which layers draw their parameters, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def test_parameter_count_is_the_published_one() -> None:
    assert sum(p.numel() for p in StatisticsNetwork().parameters()) == 113_856 + 2  # and the biases of its two maps
    assert sum(p.numel() for p in StatisticsNetwork(outputs=4).parameters()) == 113_856 + 2 * 64 * 9 + 4


def test_forward_matches_the_published_architecture() -> None:
    """Five convolutions, batch norm after the middle three, the first activation added to the fourth."""
    h = StatisticsNetwork().eval()
    for norm in h.norms:
        nn.init.uniform_(norm.running_mean, -0.1, 0.1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    x = images(2, 3, 9, 7)
    a = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    first = a = F.relu(F.conv2d(a, h.first.weight, padding=1))
    for conv, norm in zip(h.middle, h.norms, strict=True):
        a = F.conv2d(a, conv.weight, padding=1)
        a = (a - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
        a = F.relu(a * norm.weight[:, None, None] + norm.bias[:, None, None])
    expected = F.conv2d(a + first, h.output.weight, h.output.bias, padding=1)
    assert torch.allclose(h(x), expected, atol=1e-5)


def test_receptive_field_is_eleven_pixels() -> None:
    """This is the window of the prior, p = 1 + 2 x 5."""
    h = StatisticsNetwork().eval()
    x = images(1, 3, 21, 21).requires_grad_()
    h(x)[0, :, 10, 10].sum().backward()
    rows, columns = torch.nonzero(x.grad.abs().sum((0, 1)), as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 15, 5, 15)


@pytest.mark.parametrize("stride", [1, 2, 4, 5])
@pytest.mark.parametrize("size", [(16, 16), (15, 17), (1, 3), (8, 30)])
def test_output_size_rounds_up(stride: int, size: tuple[int, int]) -> None:
    maps = StatisticsNetwork(outputs=3, filters=8, stride=stride)(images(2, 3, *size))
    assert maps.shape == (2, 3, -(-size[0] // stride), -(-size[1] // stride))
    assert maps.isfinite().all()


def test_every_pixel_has_a_gradient_at_stride_four() -> None:
    h = StatisticsNetwork(filters=8, stride=4).eval()
    x = images(1, 3, 16, 16).requires_grad_()
    h(x).sum().backward()
    assert (x.grad != 0).all()


@pytest.mark.parametrize("stride", [0, -1])
def test_statistics_network_rejects_nonpositive_stride(stride: int) -> None:
    with pytest.raises(ConfigError, match="stride must be at least 1"):
        StatisticsNetwork(stride=stride)


@pytest.mark.parametrize("stride", [1, 4])
def test_evaluation_is_independent_of_the_batch(stride: int) -> None:
    h = StatisticsNetwork(filters=8, stride=stride)
    h(images(4, 3, 16, 16))  # running statistics that differ from the initial ones
    h.eval()
    x = images(3, 3, 16, 16)
    together = h(x)
    for i in range(3):
        assert torch.allclose(h(x[i : i + 1]), together[i : i + 1], atol=1e-6)


def test_feature_network_is_invariant_to_the_scale_of_features() -> None:
    h, x = FeatureStatisticsNetwork(40), torch.randn(2, 40, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = h(x)
    assert expected.shape == (2, 2, 5, 7)
    assert torch.allclose(h(x * 1e4), expected, atol=1e-5)
    assert h(torch.zeros_like(x)).isfinite().all()
    for i in range(2):
        assert torch.allclose(h(x[i : i + 1] * (1 + 100 * i)), expected[i : i + 1], atol=1e-5)


def test_networks_declare_their_source() -> None:
    assert (StatisticsNetwork().source, FeatureStatisticsNetwork(4).source) == ("image", "features")
    assert FeatureStatisticsNetwork(4, outputs=4, filters=8)(torch.zeros(1, 4, 2, 2)).shape == (1, 4, 2, 2)


@pytest.mark.parametrize("make", [StatisticsNetwork, lambda: FeatureStatisticsNetwork(3)])
def test_double_precision_is_kept(make: type[nn.Module]) -> None:
    h = make().double().eval()
    x = images(1, 3, 8, 8).double()
    assert h(x).dtype == torch.float64
    step = (h(x + 1e-11) - h(x)).abs().max()
    assert step < 1e-9
