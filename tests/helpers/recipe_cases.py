"""Every recipe at a small size, and images for it."""

import json

import torch

from semflow.data import Sample
from semflow.recipes import RECIPES, build

SMALL = {
    "sanflow": {"blocks": 2, "position_channels": 16},
    "cflow_ad": {"blocks": 2, "position_channels": 16, "locations": 64},
    "fastflow": {"steps": 2},
    "differnet": {"blocks": 1, "hidden": 16, "views": 4, "levels": 2},
    "cs_flow": {"blocks": 1, "hidden": 8, "levels": 2},
    "msflow": {"blocks": (1, 1, 2), "position_channels": 16},
}


# The smallest pyramid that timm has: 16 to 64 channels.
COMMON = {"backbone": "test_efficientnet", "weights": "random", "image_size": 64}


def small(name: str, **arguments):
    return build(name, **{**COMMON, **SMALL[name], **arguments})


def images(count: int, seed: int = 0) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)
    nothing = torch.zeros(64, 64, dtype=torch.bool)
    return [Sample(torch.rand(3, 64, 64, generator=generator), 0, nothing, f"{i}.png") for i in range(count)]


def as_json(value):
    return json.loads(json.dumps(value))


def stack(samples):
    return torch.stack([s.image for s in samples])


WITH_AND_WITHOUT = [(name, statistics) for name in RECIPES for statistics in (False, True) if name != "sanflow"]
