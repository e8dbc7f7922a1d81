"""A detector small enough to be trained in a test, and images for it."""

import numpy as np
import torch
from torch import Tensor, nn

from semflow.bases import SemanticGaussian
from semflow.data import Sample
from semflow.detectors import Detector, Provenance, Scorer
from semflow.features import FrozenFeatures
from semflow.flows import AffineCoupling, FlowSequence, GlobalAffine, HardPermutation, Standardize
from semflow.nn import InverseGammaVariance, SinusoidalPosition2d, StatisticsNetwork
from semflow.synthesis import CutPaste
from semflow.training import TrainingConfig

SIZE = 32


class Pyramid(nn.Module):
    """Two feature maps, at strides 4 and 8."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 6, 4, stride=4), nn.Conv2d(6, 8, 2, stride=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = torch.relu(self.fine(x))
        return [fine, self.coarse(fine)]


def make_detector(seed: int = 0, synthesis: bool = True, score_log_det: bool = False) -> Detector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = FrozenFeatures(Pyramid(), channels=(6, 8), strides=(4, 8))
        flows = [
            FlowSequence(
                [Standardize(c)]
                + [
                    f
                    for _ in range(2)
                    for f in (AffineCoupling(c, context_channels=8), GlobalAffine(c), HardPermutation(c))
                ]
            )
            for c in features.channels
        ]
        detector = Detector(
            features,
            flows,
            SemanticGaussian(),
            InverseGammaVariance(StatisticsNetwork(filters=8, stride=4)),
            SinusoidalPosition2d(8),
            scorer=Scorer(2),
            score_log_det=score_log_det,
        )
    detector.provenance = Provenance(
        "small",
        __name__,
        {"seed": seed},
        image_size=SIZE,
        training=TrainingConfig(epochs=3, batch_size=4, learning_rate=1e-3, mask_resize="nearest", guard=0),
        synthesis=CutPaste() if synthesis else None,
    )
    return detector


def make_images(count: int, seed: int = 0) -> list[Sample]:
    """Smooth random textures, all normal."""
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.random((count, 3, SIZE // 4, SIZE // 4), dtype=np.float32))
    images = nn.functional.interpolate(images, size=(SIZE, SIZE), mode="bilinear").clamp(0, 1)
    return [Sample(x, 0, torch.zeros(SIZE, SIZE, dtype=torch.bool), f"{i}.png") for i, x in enumerate(images)]
