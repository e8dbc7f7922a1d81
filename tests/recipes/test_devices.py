"""Scores with plain operators and on GPUs are those of the CPU's kernels; see also `tests/devices`."""

import pytest
import torch
from torch import nn

from helpers.devices import DEVICE, exact_products
from helpers.recipe_cases import ALL, FITTED, OWN, TRAINED
from semflow.detectors import Detector
from semflow.flows import fused_kernels
from semflow.recipes import build
from semflow.testing.case import perturb

SIDE = 64
COMMON = {"backbone": "test_byobnet", "backbone.weights": "random", "image_size": SIDE}
SMALL = {
    "differnet": {"couplings.blocks": 1},
    "cs_flow": {"couplings.blocks": 1, "couplings.hidden": 8, "levels": 2},
    "padim": {"channels": 20},
    "memory_flow": {"couplings.blocks": 2, "memory": 100},
}


def detector(name: str) -> Detector:
    """Return a small perturbed detector in eval mode."""
    made = build(
        name, {**COMMON, **SMALL.get(name, {}), **({} if name in ("sanflow", *FITTED, *OWN) else {"statistics": True})}
    )
    perturb(nn.ModuleList([made.flows, *([made.head] if made.head else [])]), 0.05, generator())
    made.eval().fit_base([images(4)])
    made.fit_score([images(4)])
    return made


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=generator())


@pytest.mark.parametrize("name", [*TRAINED, *OWN])
def test_scores_without_fused_kernels_are_the_same(name: str) -> None:
    """Fused blocks run on CPUs only; GPUs run the composition, as this test does on a CPU."""
    made = detector(name)
    fused = made.predict(images(5))
    with fused_kernels(False):
        plain = made.predict(images(5))
    torch.testing.assert_close(plain.score, fused.score, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plain.anomaly_map, fused.anomaly_map, rtol=1e-4, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ALL)
def test_scores_on_gpu_equal_those_on_cpu(name: str) -> None:
    """Scores agree to 1e-4, with the same decisions."""
    made, given = detector(name), images(9)
    made.calibrate([images(19)], 0.1)
    here = made.predict(given)
    with exact_products():
        there = made.to(DEVICE).predict(given.to(DEVICE))
        alone = torch.cat([made.predict(image[None].to(DEVICE)).score for image in given])
    torch.testing.assert_close(there.score.cpu(), here.score, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(there.anomaly_map.cpu(), here.anomaly_map, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(alone, there.score, rtol=1e-5, atol=1e-5)
    clear = (here.score[:, None] - made.calibration.scores.cpu()).abs().amin(1) > 1e-3  # not at a threshold
    assert torch.equal(there.is_anomalous.cpu()[clear], here.is_anomalous[clear])
