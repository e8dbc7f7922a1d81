"""Detectors to export: a tiny one of its own parts, and every recipe at its smallest."""

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from helpers.recipe_cases import FITTED, OWN
from semflow.bases import SemanticGaussian
from semflow.detectors import Detector, Provenance, Scorer
from semflow.features import FrozenFeatures
from semflow.flows import AffineCoupling, FlowSequence, GlobalAffine, HardPermutation, Standardize
from semflow.nn import InverseGammaVariance, SinusoidalPosition2d, StatisticsNetwork
from semflow.recipes import build

SIZE = 32

PACKAGES = {"torch": (), "onnx": ("onnx", "onnxruntime", "onnxscript"), "openvino": ("openvino",)}
"""What writing and running a format needs."""

SMALL = {
    "sanflow": {"couplings.blocks": 1, "couplings.position_channels": 8},
    "cflow_ad": {"couplings.blocks": 1, "couplings.position_channels": 8},
    "fastflow": {"couplings.blocks": 2},
    "differnet": {"couplings.blocks": 1, "couplings.hidden": 8, "views": 8, "levels": 2},
    "cs_flow": {"couplings.blocks": 1, "couplings.hidden": 8, "levels": 2},
    "msflow": {"couplings.blocks": (1, 1, 1), "couplings.position_channels": 8},
    "padim": {"channels": 20},
    "patchcore": {"coreset": 0.2},
    "spade": {"gallery": 5},
    "memory_flow": {"couplings.blocks": 1, "couplings.position_channels": 8, "memory": 100},
}


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 6, 4, stride=4), nn.Conv2d(6, 8, 2, stride=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = torch.relu(self.fine(x))
        return [fine, self.coarse(fine)]


def own_detector(form: str = "exact", calibrated: bool = True) -> Detector:
    """Of modules, without timm: two scales, one block each, a predicted variance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = FrozenFeatures(Pyramid(), channels=(6, 8), strides=(4, 8))
        flows = [
            FlowSequence([Standardize(c), AffineCoupling(c, context_channels=8), GlobalAffine(c), HardPermutation(c)])
            for c in features.channels
        ]
        detector = Detector(
            features,
            flows,
            SemanticGaussian(form=form),
            InverseGammaVariance(StatisticsNetwork(filters=8, stride=4)),
            SinusoidalPosition2d(8),
            scorer=Scorer(2),
            score_log_det=True,
        )
        detector.provenance = Provenance("own", image_size=SIZE)
        return settle(detector, calibrated)


def format_or_skip(name: str):
    """A parameter that is skipped, with a reason, where the format cannot be written."""
    missing = [package for package in PACKAGES[name] if find_spec(package) is None]
    reason = f"needs {', '.join(missing)}, of semflow[{'openvino' if name == 'openvino' else 'export'}]"
    return pytest.param(name, marks=pytest.mark.skipif(bool(missing), reason=reason))


FORMATS = [format_or_skip(name) for name in PACKAGES]


def recipe_detector(name: str, calibrated: bool = True, **settings) -> Detector:
    given = {} if name in ("sanflow", *FITTED, *OWN) else {"statistics": True}
    common = {"backbone": "test_efficientnet", "backbone.weights": "random", "image_size": 64}
    return settle(build(name, {**common, **SMALL[name], **given, **settings}), calibrated)


def settle(detector: Detector, calibrated: bool) -> Detector:
    """Weights as if trained: none stays at its start, where a coupling is the identity; and constants of images."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for parameter in detector.trainable():
            parameter.add_(0.05 * torch.randn_like(parameter))
        normal = pictures(detector.provenance.image_size, 12, seed=2, spoiled=0).float() / 255
        detector.eval().prepare([normal])
        detector.fit_base([normal])
        detector.fit_score([normal])
        if calibrated:
            detector.calibrate([pictures(detector.provenance.image_size, 39, seed=3, spoiled=0).float() / 255], 0.1)
    return detector


def pictures(size: int, count: int, seed: int, spoiled: int | None = None) -> Tensor:
    """Smooth textures, uint8, (count, 3, size, size); the last `spoiled`, by default half, have noise in a part."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, size // 8, size // 8, generator=generator)
    images = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    noise = torch.randint(0, 2, images.shape, generator=generator).float()
    first = count - (count // 2 if spoiled is None else spoiled)
    images[first:, :, : size // 2] = noise[first:, :, : size // 2]
    return (images * 255).round().to(torch.uint8)
