"""Subnets: sizes, receptive fields and initialization."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from semflow.errors import ConfigError
from semflow.nn import ConvSubnet, LocationSubnet, SinusoidalPosition2d


@pytest.fixture(autouse=True)
def _seeded_parameters() -> Iterator[None]:
    """Seed torch's global generator, from which layers draw their parameters, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def features(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("kernel", "event", "reach"), [(1, "location", 0), (3, "sample", 2), (5, "sample", 4)])
def test_conv_subnet_has_the_declared_receptive_field(kernel: int, event: str, reach: int) -> None:
    subnet = ConvSubnet(4, 6, kernel=kernel)
    assert subnet.event == event
    x = features(1, 4, 11, 11)
    changed = x.clone()
    changed[:, :, 5, 5] += 10
    rows, columns = torch.nonzero((subnet(x) != subnet(changed)).any(1)[0], as_tuple=True)
    assert (rows - 5).abs().max() == reach
    assert (columns - 5).abs().max() == reach


def test_location_subnet_sees_one_location() -> None:
    subnet, x = LocationSubnet(4, 6), features(2, 4, 3, 5)
    changed = x.clone()
    changed[1, :, 2, 3] += 10
    differs = (subnet(x) != subnet(changed)).any(1)
    assert differs.nonzero().tolist() == [[1, 2, 3]]
    assert subnet.event == "location"


@pytest.mark.parametrize("kernel", [0, 2, -3])
def test_conv_subnet_rejects_even_kernels(kernel: int) -> None:
    with pytest.raises(ConfigError, match="kernel must be odd"):
        ConvSubnet(4, 6, kernel=kernel)


def test_location_subnet_equals_two_linear_layers() -> None:
    subnet = LocationSubnet(3, 5)
    x = features(2, 3, 4, 6)
    plain = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5))
    with torch.no_grad():
        plain[0].weight.copy_(subnet.weight_x)
        plain[0].bias.copy_(subnet.bias)
    plain[2] = subnet.output
    assert torch.allclose(subnet(x), plain(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), atol=1e-6)


def test_subnets_have_the_published_sizes_and_initialization() -> None:
    """The hidden layer has twice the channels of x and code; splitting its weight keeps the initialization."""
    subnet = LocationSubnet(256, 512, context_channels=512)
    assert sum(p.numel() for p in subnet.parameters()) == (256 + 512) * 1536 + 1536 + 1536 * 512 + 512
    bound = (256 + 512) ** -0.5  # of a linear layer of both
    for weight in (subnet.weight_x, subnet.weight_context):
        assert 0.99 * bound < weight.abs().max() <= bound
    assert LocationSubnet(3, 5, hidden=7).bias.shape == (7,)
    assert ConvSubnet(3, 5, 4).first.weight.shape == (7, 7, 3, 3)


@pytest.mark.parametrize("make", [LocationSubnet, ConvSubnet])
def test_unconditional_subnet_ignores_the_context(make: type[nn.Module]) -> None:
    """A sequence gives the same context to all its flows, including unconditional ones."""
    subnet, x = make(3, 5), features(2, 3, 4, 6)
    assert torch.equal(subnet(x, SinusoidalPosition2d(8)(4, 6)), subnet(x))


def test_subnets_accept_any_memory_layout() -> None:
    x = features(2, 3, 4, 6)
    for subnet in (LocationSubnet(3, 5), ConvSubnet(3, 5)):
        expected = subnet(x)
        assert torch.allclose(subnet(x.contiguous(memory_format=torch.channels_last)), expected, atol=1e-6)
        assert torch.allclose(subnet(x.mT.contiguous().mT), expected, atol=1e-6)


def test_repr_shows_the_sizes() -> None:
    assert "in=3, context=8, hidden=22" in repr(LocationSubnet(3, 5, 8))
