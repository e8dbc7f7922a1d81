"""A recipe outside semflow, with a backbone that may be a module of the user's own."""

import torch
from torch import Tensor, nn

from semflow.bases import StandardNormal
from semflow.detectors import Detector
from semflow.features import FeatureExtractor, FrozenFeatures
from semflow.flows import coupling_stack
from semflow.recipes import Backbone, Couplings, recipe
from semflow.recipes.groups import build_features
from semflow.training import TrainingConfig

__all__ = ["Network", "own_features", "own_recipe"]


class Network(nn.Module):
    """One feature map of stride 4."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 4, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x).relu()


def own_features(seed: int = 0) -> FrozenFeatures:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FrozenFeatures(Network(), channels=(6,), strides=(4,))


@recipe
def own_recipe(
    backbone: Backbone | str | FeatureExtractor = Backbone("test_efficientnet", "random", (8,)),
    image_size: int = 32,
    couplings: Couplings = Couplings(2, 8),
    training: TrainingConfig = TrainingConfig(2, 4),
    seed: int = 0,
) -> Detector:
    features = build_features(backbone, image_size, seed)
    flows = [coupling_stack(c, couplings.blocks) for c in features.channels]
    return Detector(features, flows, StandardNormal())
