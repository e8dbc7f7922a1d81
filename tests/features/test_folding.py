"""Folding of batch normalizations: equal maps, and no folding of layers with another use."""

import pytest
import torch
from torch import Tensor, nn

from semflow.features.folding import fold_batch_norm
from semflow.features.timm_module import build


def with_statistics(network: nn.Module, seed: int = 0) -> nn.Module:
    """Set statistics far from the identity, which would hide a wrong pair."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.3, generator=generator)
    return network.eval()


def maps_of(network: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        output = network(x)
    return [m.clone() for m in (output if isinstance(output, list) else [output])]


def count(network: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())


def check(network: nn.Module, left: int) -> None:
    """Fold a network, compare its maps, and count the normalizations left in it."""
    with_statistics(network)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    before, layers = maps_of(network, x), count(network)
    assert fold_batch_norm(network, torch.zeros(1, 3, 64, 64)) == layers - left
    assert count(network) == left
    for m, r in zip(maps_of(network, x), before, strict=True):
        torch.testing.assert_close(m, r, rtol=1e-4, atol=1e-5 * float(r.abs().max()))


@pytest.mark.parametrize(
    ("backbone", "left"),
    [
        ("tf_efficientnet_lite0", 0),  # TensorFlow's padding; normalization and activation in one layer
        ("test_resnet", 0),  # separate activations, downsampling branches
        ("mobilenetv3_small_050", 0),  # squeeze and excite
        ("regnety_002", 0),
        ("densenet121", 62),  # normalization before convolution: only the second of each pair
    ],
)
def test_folding_keeps_the_maps_of_timm_networks(backbone: str, left: int) -> None:
    check(build(backbone, features_only=True), left)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_folding_supports_bias_affine_and_groups(affine: bool, bias: bool, groups: int) -> None:
    check(nn.Sequential(nn.Conv2d(3, 6, 3, bias=bias, groups=groups), nn.BatchNorm2d(6, affine=affine)), left=0)


class Tapped(nn.Module):
    """Network with a second use of a convolution or its normalization."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv, self.norm, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.conv(x)
        if self.way == "added":
            return [self.norm(y) + y]
        if self.way == "returned":
            return [y, self.norm(y)]
        if self.way == "two norms":
            return [self.norm(y), self.other(y)]
        if self.way == "norm twice":
            return [self.norm(y), self.norm(x)]
        if self.way == "conv twice":
            return [self.norm(y), self.conv(y)]
        return [self.norm(y.relu())]


@pytest.mark.parametrize("way", ["added", "returned", "two norms", "norm twice", "conv twice", "activated"])
def test_folding_skips_outputs_with_a_second_use(way: str) -> None:
    check(Tapped(way), left=2)


def test_folding_skips_layers_with_hooks() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    network[1].register_forward_hook(lambda *_: None)
    check(network, left=1)
