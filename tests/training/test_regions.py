"""Regions of interest: outside, nothing trains, scores or counts, for every recipe."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import semflow
from helpers.recipe_cases import ALL, images, small, stack
from semflow.data import Sample
from semflow.detectors import Detector
from semflow.errors import CheckpointError, ConfigError, DataError, ShapeError
from semflow.functional import covered
from semflow.training import evaluate

SIDE = 64
REGION = torch.zeros(SIDE, SIDE, dtype=torch.bool)
REGION[5:41, 11:50] = True
REGION[20:30, 20:30] = False

FEW = ("patchcore", "padim", "sanflow")
REPEATED = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in ALL]


def with_region(samples: list[Sample], region: Tensor = REGION) -> list[Sample]:
    return [s._replace(image=torch.cat([s.image, region[None].float()])) for s in samples]


def spoiled(samples: list[Sample], seed: int = 9) -> list[Sample]:
    """The same inside the region, and noise outside."""
    draws = torch.Generator().manual_seed(seed)
    return [s._replace(image=torch.where(REGION, s.image, torch.rand(s.image.shape, generator=draws))) for s in samples]


def fitted(name: str, samples: list[Sample], region: Tensor | None = None, **options: Any) -> Detector:
    detector = small(name)
    epochs = {"epochs": 2} if detector.trainable() and detector.provenance.training.steps is None else {}
    settings = {"batch_size": 4, "progress": False, "device": "cpu", **epochs, **options}
    return semflow.fit(detector, samples, region=region, **settings)


def same_state(a: Detector, b: Detector) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ALL)
def test_pixels_outside_change_neither_weights_nor_scores(name: str) -> None:
    good, tested = images(12), images(2, seed=5)
    one = fitted(name, good, REGION)
    other = fitted(name, spoiled(good), REGION)
    assert same_state(one, other)
    a, b = one.predict(stack(tested)), other.predict(stack(spoiled(tested)))
    assert torch.equal(a.score, b.score)
    assert torch.equal(a.anomaly_map, b.anomaly_map)
    assert a.anomaly_map[:, ~REGION].eq(-torch.inf).all()
    assert a.anomaly_map[:, REGION].isfinite().all()


@pytest.mark.parametrize("name", REPEATED)
def test_a_region_of_everything_is_no_region(name: str) -> None:
    everything = torch.ones(SIDE, SIDE)
    good, tested = images(10), stack(images(2, seed=5))
    plain, own = fitted(name, good), fitted(name, good, everything)
    channel = fitted(name, with_region(good, everything))
    assert own.region is None
    assert same_state(plain, own)
    assert same_state(plain, channel)
    expected = plain.predict(tested)
    for found in (own.predict(tested), channel.predict(torch.cat([tested, torch.ones_like(tested[:, :1])], 1))):
        assert torch.equal(found.score, expected.score)
        assert torch.equal(found.anomaly_map, expected.anomaly_map)


@pytest.mark.parametrize("name", [case for case in REPEATED if "differnet" not in str(case)])
def test_a_region_of_the_detector_is_that_of_its_images(name: str) -> None:
    good, tested = images(12), images(2, seed=5)
    own, channel = fitted(name, good, REGION), fitted(name, with_region(good))
    state = own.state_dict()
    assert torch.equal(state.pop("region"), REGION)
    assert all(torch.equal(x, channel.state_dict()[key]) for key, x in state.items())
    a, b = own.predict(stack(tested)), channel.predict(stack(with_region(tested)))
    assert torch.equal(a.score, b.score)
    assert torch.equal(a.anomaly_map, b.anomaly_map)


@pytest.mark.parametrize("name", ["patchcore", "sanflow", "differnet", "spade"])
def test_an_image_is_scored_alike_beside_images_of_other_regions(name: str) -> None:
    detector = fitted(name, with_region(images(6)), calibration=with_region(images(9, seed=3)))
    batch = stack(with_region(images(3, seed=5)))
    batch[1, 3], batch[2, 3] = 1.0, REGION.flip(0).float()
    together = detector.predict(batch)
    for k in range(3):
        alone = detector.predict(batch[k : k + 1])
        torch.testing.assert_close(together.score[k], alone.score[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.anomaly_map[k], alone.anomaly_map[0], rtol=1e-4, atol=1e-4)
        assert not together.mask[k][batch[k, 3] == 0].any()


def test_a_memory_stores_only_what_is_inside() -> None:
    detector = semflow.recipes.build(
        "patchcore",
        {"backbone": "test_efficientnet", "backbone.weights": "random", "image_size": SIDE, "coreset": 1.0},
    )
    semflow.fit(detector, images(3), region=REGION, progress=False, device="cpu")
    cells = SIDE // 8
    inside = sum(bool(REGION[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].any()) for i in range(cells) for j in range(cells))
    assert len(detector.bases[0].vectors) == 3 * inside


def test_constants_and_losses_are_of_locations_inside() -> None:
    detector, good = small("sanflow"), stack(images(4))
    detector.set_region(REGION)
    detector.prepare([good])
    detector.eval()
    maps = detector.feature_maps(good)
    for k, x in enumerate(maps):
        cells = covered(REGION[None].expand(4, -1, -1), x.shape[2:])
        assert cells.any()
        assert k or not cells.all()
        inside = x.permute(0, 2, 3, 1)[cells].double()
        torch.testing.assert_close(
            detector.flows.standardizers()[k].mean.double(), inside.mean(0), rtol=1e-5, atol=1e-5
        )
    detector.fit_score([good])
    log_probs, _ = detector.log_probs(good)
    for p, offset in zip(log_probs, detector.scorer.offsets, strict=True):
        assert offset == p[covered(REGION[None].expand(4, -1, -1), p.shape[1:])].max()
    expected = []
    for latents, base in zip(detector.encode(good), detector.bases, strict=True):
        cells = covered(REGION[None].expand(4, -1, -1), latents.z.shape[2:])
        nll = -(base.log_prob(latents.z, latents.statistics) + latents.log_det) / latents.z.shape[1]
        expected.append(nll[cells].mean())
    torch.testing.assert_close(detector.loss(good).nll, sum(expected).detach())


def test_metrics_count_pixels_inside() -> None:
    detector = fitted("patchcore", images(4), REGION)
    good, bad = images(1, seed=7)[0], images(1, seed=8)[0]
    image, mask = bad.image.clone(), torch.zeros(SIDE, SIDE, dtype=torch.bool)
    image[:, 8:18, 30:45], mask[8:18, 30:45] = 0.0, True
    tested = [good, bad._replace(image=image, label=1, anomaly_mask=mask)]
    found = evaluate(detector, tested)
    maps = detector.predict(stack(tested)).anomaly_map
    masks = torch.stack([s.anomaly_mask for s in tested])
    assert found["pixel_auroc"] == pytest.approx(
        semflow.metrics.auroc(maps[:, REGION].flatten(), masks[:, REGION].flatten())
    )
    more = mask.clone()
    more[45:60, :] = True  # outside
    assert evaluate(detector, [good, tested[1]._replace(anomaly_mask=more)]) == found


def test_a_model_keeps_its_region(tmp_path: Path) -> None:
    detector = fitted("patchcore", images(4), REGION, output=tmp_path / "run")
    loaded = semflow.load(tmp_path / "run", device="cpu")
    assert torch.equal(loaded.region, REGION)
    tested = stack(images(2, seed=5))
    assert torch.equal(loaded.predict(tested).anomaly_map, detector.predict(tested).anomaly_map)
    with pytest.raises(CheckpointError, match="region"):
        fitted("patchcore", images(4), REGION.flip(0), output=tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match="region"):
        fitted("patchcore", images(4), output=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "region", [torch.zeros(SIDE, SIDE) > 0, torch.ones(SIDE, SIDE), torch.ones(8, 8) > 0, torch.ones(1, SIDE, SIDE) > 0]
)
def test_a_saved_region_that_cannot_be_is_refused(region: Tensor) -> None:
    detector = small("patchcore")
    with pytest.raises(CheckpointError, match="region must be a mask that fit can have saved"):
        detector.load_state_dict({**detector.state_dict(), "region": region})


def test_a_model_asks_for_the_regions_of_its_images(tmp_path: Path) -> None:
    detector = fitted("patchcore", with_region(images(4)))
    loaded = semflow.load(semflow.save(detector, tmp_path / "run"), device="cpu")
    assert (loaded.provenance.regions, loaded.provenance.resize, loaded.provenance.channels) == (True, "stretch", 4)
    with pytest.raises(ShapeError, match="their region as the last of 2 or 4 channels"):
        loaded.predict(stack(images(1)))
    with pytest.raises(ShapeError, match="2 or 4 channels"):
        semflow.calibrate(detector, images(9, seed=3))


@pytest.mark.parametrize(
    ("region", "words"),
    [
        (torch.zeros(SIDE, SIDE), "must have pixels inside, but got an empty mask"),
        (torch.ones(SIDE, SIDE - 1), r"must be \(64, 64\) like the images, but got \(64, 63\)"),
        (torch.ones(1, SIDE, SIDE), r"must be a mask \(H, W\), but got \(1, 64, 64\)"),
        ("mask.png", r"must be a mask \(H, W\), but got str"),
    ],
)
def test_wrong_regions_are_refused(region: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fitted("patchcore", images(4), region)


def test_an_image_without_any_pixel_inside_is_refused() -> None:
    empty = with_region(images(1), torch.zeros(SIDE, SIDE, dtype=torch.bool))
    with pytest.raises(DataError, match=r"0\.png must have pixels in its region of interest"):
        fitted("patchcore", [*with_region(images(3)), *empty])
    with pytest.raises(ShapeError, match="must have pixels in their region of interest"):
        small("patchcore").predict(stack(empty))


def test_a_distribution_at_every_location_needs_one_region() -> None:
    with pytest.raises(DataError, match="must have one region of interest for a distribution at every location"):
        fitted("padim", [*with_region(images(4)), *with_region(images(2, seed=1), REGION.flip(0))])
