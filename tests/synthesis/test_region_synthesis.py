"""Synthetic anomalies in images with a region of interest."""

import numpy as np
import pytest
import torch

from semflow.data import Sample
from semflow.synthesis import Blemishes, CutPaste, SyntheticAnomalies, synthesize

REGION = torch.zeros(64, 64)
REGION[10:50, 20:44] = 1
REGION[15:30, 25:35] = 0
KINDS = [(CutPaste(), kind) for kind in ("small", "medium", "circle", "scar")]
KINDS += [(Blemishes(), kind) for kind in Blemishes().kinds]


def images(count: int, region: torch.Tensor = REGION) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return [torch.cat([torch.rand(3, 64, 64, generator=draws), region[None]]) for _ in range(count)]


@pytest.mark.parametrize(("synthesis", "kind"), KINDS, ids=[kind for _, kind in KINDS])
def test_anomalies_lie_inside(synthesis, kind) -> None:
    image, donor = images(2)
    spoiled = torch.where(REGION > 0, donor, torch.rand(4, 64, 64))
    spoiled[3] = REGION
    sizes = []
    for seed in range(10):
        changed, mask = synthesize(synthesis, image, donor, kind, np.random.default_rng(seed))
        assert not (mask & (REGION == 0)).any()
        assert torch.equal(changed[:, ~mask], image[:, ~mask])
        assert torch.equal(changed[3], REGION)
        other, same = synthesize(synthesis, image, spoiled, kind, np.random.default_rng(seed))
        assert torch.equal(other, changed)
        assert torch.equal(same, mask)
        sizes.append(int(mask.sum()))
    assert np.median(sizes) > 0


@pytest.mark.parametrize(("synthesis", "kind"), KINDS, ids=[kind for _, kind in KINDS])
def test_a_region_of_everything_changes_nothing(synthesis, kind) -> None:
    image, donor = images(2, torch.ones(64, 64))
    found, mask = synthesize(synthesis, image, donor, kind, np.random.default_rng(3))
    expected, expected_mask = synthesis(image[:3], donor[:3], kind, np.random.default_rng(3))
    assert torch.equal(found[:3], expected)
    assert torch.equal(mask, expected_mask)


def test_labels_follow_the_masks() -> None:
    source = SyntheticAnomalies([Sample(image, 0, None, "a.png") for image in images(8)], seed=2)
    for position in range(8):
        sample = source[position]
        assert sample.label == int(sample.anomaly_mask.any())
        assert not (sample.anomaly_mask & (REGION == 0)).any()
