"""Recipes with a backbone or subnets of the user's own, and with transformers."""

import inspect
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import semflow
from helpers.recipe_cases import BUILT_IN, COMMON, SMALL, small
from semflow.errors import CheckpointError, ConfigError
from semflow.features import FrozenFeatures
from semflow.nn import CrossScaleConvs
from semflow.recipes import build
from semflow.recipes.groups import Backbone


class Levels(nn.Module):
    """Backbone of the user's own with maps of three strides."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(i, o, s, stride=s) for i, o, s in ((3, 8, 4), (8, 12, 2), (12, 16, 2), (16, 20, 2))
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        for number, layer in enumerate(self.layers):
            maps[str(number)] = x = layer(x)
        return dict(list(maps.items())[:3])


@pytest.mark.parametrize("name", BUILT_IN)
def test_recipe_takes_any_module_as_backbone(name: str, tmp_path: Path) -> None:
    settings = {**SMALL[name], "image_size": 64, "backbone": Levels()}
    if name == "memory_flow":
        settings.pop("training.steps")
    detector = build(name, settings).eval()
    maps = [m for m in detector.modules() if isinstance(m, FrozenFeatures)]
    assert [(m.channels, m.strides) for m in maps] == [((8, 12, 16), (4, 8, 16))]
    assert not any(p.requires_grad for p in detector.features.parameters())
    latents = detector.encode(torch.rand(2, 3, 64, 64))
    assert all(scale.z.isfinite().all() for scale in latents)
    loaded = semflow.load(semflow.save(detector, tmp_path / "run"), features=Levels(), device="cpu")
    pairs = zip(detector.encode(torch.ones(1, 3, 64, 64)), loaded.encode(torch.ones(1, 3, 64, 64)), strict=True)
    assert all(torch.equal(a.z, b.z) for a, b in pairs)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 4), nn.Flatten()), r"Sequential must return feature maps .*; use its layers"),
        (nn.Linear(4, 4), "Linear must map images .* to feature maps, but got the error"),
        (Levels, "backbone must be .* but got the class Levels"),
        (3, "backbone must be a Backbone, a name of timm or a module, but got int"),
    ],
)
def test_backbones_without_feature_maps_are_rejected(backbone: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build("sanflow", {"image_size": 64, "backbone": backbone})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2"])
@pytest.mark.parametrize("name", BUILT_IN)
def test_errors_for_transformers_lead_to_settings_that_work(name: str, model: str) -> None:
    """Follow the advice of each error, at most twice."""
    settings = {key: value for key, value in SMALL[name].items() if key != "levels"} | {"image_size": 120}
    backbone = inspect.signature(BUILT_IN[name]).parameters["backbone"].default
    strides, detector, advice = backbone.strides, None, ""
    for _ in range(3):
        given = Backbone(model, "random", strides, backbone.smoothing, backbone.reduction)
        try:
            detector = build(name, {**settings, "backbone": given}).eval()
            break
        except ConfigError as error:
            advice = str(error)
        if found := re.search(r"strides=\(([\d, ]+)\)", advice):
            strides = tuple(int(stride) for stride in found[1].split(",") if stride)
            assert len(strides) == len(backbone.strides)
        elif found := re.search(r"image_size=(\d+)", advice):
            settings["image_size"] = int(found[1])
    assert detector is not None, advice
    side = detector.provenance.image_size
    assert all(scale.z.isfinite().all() for scale in detector.encode(torch.rand(1, 3, side, side)))


def perceptron(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


SUBNETS: dict[str, Any] = {
    "sanflow": perceptron,
    "cflow_ad": perceptron,
    "memory_flow": perceptron,
    "differnet": perceptron,
    "fastflow": partial(nn.Conv2d, kernel_size=5, padding=2),
    "msflow": partial(nn.Conv2d, kernel_size=3, padding=1),
    "cs_flow": partial(CrossScaleConvs, hidden=4),
}


@pytest.mark.parametrize("name", SUBNETS)
def test_recipe_takes_subnets_of_ones_own(name: str, tmp_path: Path) -> None:
    subnet = SUBNETS[name]
    detector = small(name, {"couplings.subnet": subnet})
    kind = subnet.func if isinstance(subnet, partial) else nn.Tanh
    assert any(isinstance(module, kind) for module in detector.flows.modules())
    detector.eval()
    run = semflow.save(detector, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"must be loaded with its subnet, .*; pass it as subnet"):
        semflow.load(run)
    loaded = semflow.load(run, subnet=subnet, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(detector.parameters(), loaded.parameters(), strict=True))
    plain = semflow.save(small(name), tmp_path / "plain")
    with pytest.raises(CheckpointError, match="must hold a detector with subnet of your own, but got one without"):
        semflow.load(plain, subnet=subnet)


@pytest.mark.parametrize("subnet", ["conv", nn.Linear(2, 2), 3])
def test_subnet_of_a_recipe_must_be_a_constructor(subnet: Any) -> None:
    with pytest.raises(ConfigError, match=r"couplings.subnet must be a constructor f\(in, out\), .* but got"):
        build("fastflow", {**COMMON, "couplings.subnet": subnet})
