"""Recipes that are fitted in one pass: an identity flow with a base on the features."""

import pytest
import torch
import torch.nn.functional as F

from helpers.recipe_cases import FITTED, images, small, stack
from semflow.bases import Gallery, Memory, PositionGaussian, StandardNormal
from semflow.detectors import Detector
from semflow.errors import DataError
from semflow.flows import Identity
from semflow.recipes import build, load
from semflow.training import evaluate, fit

BATCH = stack(images(3, seed=1))


@pytest.mark.parametrize("name", FITTED)
def test_recipe_fits_scores_and_loads(name, tmp_path) -> None:
    detector = small(name)
    assert not detector.trainable()
    fit(detector, images(6), output=tmp_path / "run", calibration=images(9, seed=5), progress=False)
    prediction = detector.predict(BATCH)
    assert prediction.anomaly_map.shape == (3, 64, 64)
    assert prediction.anomaly_map.isfinite().all()
    low, high = detector.map_range
    assert 0 <= low < high
    loaded = load(tmp_path / "run")
    again = loaded.predict(BATCH)
    assert torch.equal(again.score, prediction.score)
    assert torch.equal(again.p_value, prediction.p_value)
    assert loaded.provenance == detector.provenance
    for k in range(3):
        alone = detector.predict(BATCH[k : k + 1])
        torch.testing.assert_close(alone.score[0], prediction.score[k], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.anomaly_map[0], prediction.anomaly_map[k], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FITTED)
def test_spoiled_images_have_higher_scores_and_maps(name) -> None:
    good = [s._replace(image=0.5 + 0.02 * s.image) for s in images(30)]
    detector = fit(small(name), good, progress=False)
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[16:40, 16:40] = True
    spoiled = [
        s._replace(image=torch.where(mask, 1 - s.image, s.image), label=1, anomaly_mask=mask)
        for s in (s._replace(image=0.5 + 0.02 * s.image) for s in images(6, seed=1))
    ]
    for s in spoiled:
        s.image[:, 20:36, 20:36] = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1))
    others = [s._replace(image=0.5 + 0.02 * s.image) for s in images(6, seed=2)]
    metrics = evaluate(detector, [*others, *spoiled])
    assert metrics["image_auroc"] == 1.0
    assert metrics["pixel_auroc"] > 0.9


@pytest.mark.parametrize("name", FITTED)
def test_fits_are_reproducible_and_seeds_draw_what_is_random(name) -> None:
    first, same, other = (fit(small(name, {"seed": s}), images(6), progress=False).predict(BATCH) for s in (1, 1, 2))
    assert torch.equal(first.score, same.score)
    assert torch.equal(first.anomaly_map, same.anomaly_map)
    assert not torch.equal(other.score, first.score)  # of the random backbone, too


def test_defaults_are_published() -> None:
    padim, patchcore, spade = (build(name, {"backbone.weights": "random"}) for name in FITTED)
    assert (padim.features.channels, padim.features.strides) == ((100,), (4,))
    assert isinstance(padim.bases[0], PositionGaussian)
    assert (padim.bases[0].form, padim.bases[0].shrinkage, padim.scorer.blur) == ("distance", 0.01, 4.0)
    assert (patchcore.features.channels, patchcore.features.strides) == ((512 + 1024,), (8,))
    memory = patchcore.bases[0]
    assert isinstance(memory, Memory)
    assert (memory.form, memory.size, memory.image_neighbors) == ("distance", 0.1, 9)
    assert patchcore.scorer.interpolation == "nearest"
    gallery = spade.bases[0]
    assert isinstance(gallery, Gallery)
    assert (gallery.descriptor, gallery.images) == (2048, 50)
    assert (spade.features.channels, spade.features.strides) == ((256 + 512 + 1024 + 2048,), (4,))


def test_padim_takes_all_channels_if_there_are_fewer() -> None:
    detector = small("padim", {"channels": 5000})
    assert sorted(detector.features.index.tolist()) == list(range(detector.features.channels[0]))


def test_padim_density_is_a_log_probability() -> None:
    detector = fit(small("padim", {"form": "density", "blur": 0.0}), images(6), progress=False)
    with torch.no_grad():
        (z,) = detector.features(BATCH)
        log_prob = detector.bases[0].log_prob(z) / z.shape[1]
        enlarged = F.interpolate(log_prob[:, None], (64, 64), mode="bilinear")[:, 0]
    expected = detector.scorer.offsets[0] - enlarged
    torch.testing.assert_close(detector.predict(BATCH).anomaly_map, expected, rtol=1e-4, atol=1e-4)


def test_spade_describes_images_by_the_mean_of_the_deepest_map() -> None:
    detector = fit(small("spade"), images(6), progress=False)
    deepest = detector.features.features(stack(images(6)))[-1].mean((2, 3))
    torch.testing.assert_close(detector.bases[0].descriptors, deepest, rtol=1e-5, atol=1e-5)
    squares = (detector.features.features(BATCH)[-1].mean((2, 3))[:, None] - deepest).square().sum(2)
    expected = squares.sort(1).values[:, :3].mean(1)
    torch.testing.assert_close(detector.predict(BATCH).score, expected, rtol=1e-4, atol=1e-6)


def test_patchcore_without_image_neighbors_scores_the_maximum_of_the_map() -> None:
    detector = fit(small("patchcore", {"image_neighbors": None}), images(6), progress=False)
    prediction = detector.predict(BATCH)
    torch.testing.assert_close(prediction.score, prediction.anomaly_map.flatten(1).amax(1))


def test_score_of_an_image_is_the_mean_of_those_that_bases_have() -> None:
    class Constant(StandardNormal):
        def __init__(self, value: float | None) -> None:
            super().__init__()
            self.value = value

        def image_score(self, z, normality):
            return None if self.value is None else normality.sum((1, 2)) * 0 + self.value

    backbone = small("fastflow").features
    for values, expected in (((1.0, None, 4.0), 2.5), ((None, None, 3.0), 3.0)):
        bases = [Constant(value) for value in values]
        detector = Detector(backbone, [Identity() for _ in values], bases)
        assert detector.predict(BATCH).score.tolist() == [expected] * 3
    bases = [Constant(None) for _ in values]
    own, plain = (Detector(backbone, [Identity() for _ in values], b) for b in (bases, StandardNormal()))
    assert torch.equal(own.predict(BATCH).score, plain.predict(BATCH).score)


@pytest.mark.parametrize("name", FITTED)
def test_too_few_images_are_named_before_anything_is_fitted(name) -> None:
    detector = small(name)
    least = max(base.least_images for base in detector.fitted_bases.values())
    with pytest.raises(DataError, match=rf"^dataset must hold at least {least} images for a \w+, but got {least - 1}$"):
        fit(detector, images(least - 1), progress=False)
    assert fit(detector, images(least), progress=False).predict(BATCH).score.isfinite().all()
