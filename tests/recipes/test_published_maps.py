"""Given the same latents, the anomaly maps of the recipes are those of the published definitions, image by image.

Ours are -log p where published ones are -p or max - p: the same order, without the rounding of 1 - p.

The definitions are written out here in numpy, with scipy's interpolation. Published codes subtract maxima over whatever
is scored together; where that is so, the recipe's constants, which come from training images, are set to those maxima,
and what is left is a constant of the whole map.
"""

import numpy as np
import pytest
import torch
from scipy import ndimage

from semflow.bases import StandardNormal
from semflow.recipes import build

SIZE = (40, 56)
SHAPES = ((6, 10, 14), (8, 5, 7), (12, 3, 4))
COMMON = {"backbone": "test_efficientnet", "backbone.weights": "random"}


def upsample(maps: np.ndarray, align_corners: bool) -> np.ndarray:
    """(B, h, w) to (B, *SIZE), bilinear; beyond the outermost centers the border value."""
    axes = []
    for small, large in zip(maps.shape[1:], SIZE, strict=True):
        if align_corners:
            axes.append(np.arange(large) * (small - 1) / (large - 1))
        else:
            axes.append((np.arange(large) + 0.5) * small / large - 0.5)
    grid = np.meshgrid(*axes, indexing="ij")
    return np.stack([ndimage.map_coordinates(m, grid, order=1, mode="nearest") for m in maps])


@pytest.fixture
def latents() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (1.5 * torch.randn(4, c, h, w, generator=generator), torch.randn(4, h, w, generator=generator))
        for c, h, w in SHAPES
    ]


def log_probs(latents, with_log_det: bool) -> list[torch.Tensor]:
    """Return log p per dimension, the input of a scorer."""
    base = StandardNormal()
    return [(base.log_prob(z) + (log_det if with_log_det else 0)) / z.shape[1] for z, log_det in latents]


def mean_square(z: torch.Tensor) -> np.ndarray:
    return z.double().square().mean(1).numpy()


def test_fastflow(latents) -> None:
    scorer = build("fastflow", {**COMMON, "couplings.blocks": 1}).scorer
    anomaly_map, _ = scorer(log_probs(latents, with_log_det=False), SIZE)
    published = np.mean([upsample(-np.exp(-0.5 * mean_square(z)), align_corners=False) for z, _ in latents], axis=0)
    np.testing.assert_allclose(-np.exp(-anomaly_map.double().numpy()), published, rtol=1e-5)
    scorer.set_maxima([3.0, 3.0, 3.0])  # no effect: published maps use no maxima
    torch.testing.assert_close(scorer(log_probs(latents, False), SIZE)[0], anomaly_map)


def test_fastflow_takes_the_maximum_as_published_when_asked(latents) -> None:
    anomaly_map, score = build("fastflow", {**COMMON, "couplings.blocks": 1, "top": 0.0}).scorer(
        log_probs(latents, False), SIZE
    )
    torch.testing.assert_close(score, anomaly_map.amax((1, 2)))


def test_cflow_ad(latents) -> None:
    scorer = build("cflow_ad", {**COMMON, "couplings.blocks": 1, "couplings.position_channels": 8}).scorer
    scores = log_probs(latents, with_log_det=True)
    per_scale = []
    for z, log_det in latents:
        c = z.shape[1]
        log_likelihood = -0.5 * c * (np.log(2 * np.pi) + mean_square(z)) + log_det.double().numpy()
        per_scale.append(log_likelihood / c)
    scorer.set_maxima([p.max() for p in per_scale])
    anomaly_map, _ = scorer(scores, SIZE)
    summed = sum(upsample(np.exp(p - p.max()), align_corners=True) for p in per_scale)
    published = summed.max() - summed
    ours = 3 * np.exp(-anomaly_map.double().numpy())
    for image in range(4):
        np.testing.assert_allclose(summed.max() - ours[image], published[image], atol=1e-5)


def test_msflow(latents) -> None:
    """One image at a time, since published maxima are those of each image."""
    scorer = build("msflow", {**COMMON, "couplings.blocks": (1, 1, 1), "couplings.position_channels": 8}).scorer
    for image in range(4):
        one = [(z[image : image + 1], log_det[image : image + 1]) for z, log_det in latents]
        per_scale = [-0.5 * mean_square(z) for z, _ in one]
        log_normalizer = -0.5 * np.log(2 * np.pi)
        scorer.set_maxima([p.max() + log_normalizer for p in per_scale])
        anomaly_map, score = scorer(log_probs(one, with_log_det=False), SIZE)
        added = sum(upsample(np.exp(p - p.max()), align_corners=True) for p in per_scale)
        np.testing.assert_allclose(3 * np.exp(-anomaly_map.double().numpy()), added, rtol=1e-5)

        total = sum(upsample(p, align_corners=True) for p in per_scale)
        multiplied = np.exp(total - total.max())
        share = np.exp(total.max() - sum(p.max() for p in per_scale))  # of the peaks, which need not meet in one pixel
        lowest = np.sort((share * multiplied).ravel())[: round(0.03 * multiplied.size)]
        assert score.item() == pytest.approx(-np.log(lowest.mean()), rel=1e-4)


def test_cs_flow(latents) -> None:
    """The recipe's map is the mean over all scales of mean_c z^2 / 2, its score the mean of the map."""
    scorer = build("cs_flow", {**COMMON, "image_size": 64, "couplings.blocks": 1, "couplings.hidden": 4}).scorer
    scorer.set_maxima([-0.5 * np.log(2 * np.pi)] * 3)
    anomaly_map, score = scorer(log_probs(latents, with_log_det=False), SIZE)
    expected = np.mean([upsample(mean_square(z), align_corners=False) for z, _ in latents], axis=0) / 2
    np.testing.assert_allclose(anomaly_map.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(score.numpy(), expected.mean((1, 2)), rtol=1e-5)
