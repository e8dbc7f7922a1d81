"""Every recipe at a small size, and images for it."""

from functools import cache

import torch

from semflow.data import Sample
from semflow.detectors import Detector
from semflow.recipes import RECIPES, build

# Without recipes that other tests register in the same process.
BUILT_IN = {name: make for name, make in RECIPES.items() if make.__module__.startswith("semflow.")}

SMALL = {
    "sanflow": {"couplings.blocks": 2, "couplings.position_channels": 16},
    "cflow_ad": {"couplings.blocks": 2, "couplings.position_channels": 16, "training.locations": 64},
    "fastflow": {"couplings.blocks": 2},
    "differnet": {"couplings.blocks": 1, "couplings.hidden": 16, "views": 4, "levels": 2},
    "cs_flow": {"couplings.blocks": 1, "couplings.hidden": 8, "levels": 2},
    "msflow": {"couplings.blocks": (1, 1, 2), "couplings.position_channels": 16},
    "padim": {"channels": 20},
    "patchcore": {"coreset": 0.2},
    "spade": {"gallery": 3},
    "memory_flow": {"couplings.blocks": 2, "couplings.position_channels": 16, "memory": 100, "training.steps": 12},
}


ALL = tuple(SMALL)
OWN = ("memory_flow",)
PUBLISHED = tuple(name for name in SMALL if name not in OWN)
FITTED = ("padim", "patchcore", "spade")  # in one pass, without training and statistics
TRAINED = tuple(name for name in PUBLISHED if name not in FITTED)
# The smallest pyramid that timm has: 16 to 64 channels.
COMMON = {"backbone": "test_efficientnet", "backbone.weights": "random", "image_size": 64}


def small(name: str, settings: dict | None = None):
    return build(name, {**COMMON, **SMALL[name], **(settings or {})})


def images(count: int, seed: int = 0) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)
    nothing = torch.zeros(64, 64, dtype=torch.bool)
    return [Sample(torch.rand(3, 64, 64, generator=generator), 0, nothing, f"{i}.png") for i in range(count)]


def stack(samples):
    return torch.stack([s.image for s in samples])


@cache
def fitted(name: str) -> Detector:
    """Return a calibrated detector, which is not to be changed."""
    made, batch = small(name).eval(), stack(images(9))
    made.prepare([batch])
    made.fit_base([batch])
    made.fit_score([batch])
    made.calibrate([stack(images(9, 5))], 0.1)
    return made


WITH_AND_WITHOUT = [
    *((name, {"statistics": statistics}) for name in TRAINED for statistics in (False, True) if name != "sanflow"),
    ("sanflow", {}),
]
