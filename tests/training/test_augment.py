"""Augmentation in `fit`: of the images that are trained on alone, in every way of training the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

import semflow
from helpers.recipe_cases import images, small, stack
from helpers.small_detector import SIZE, make_detector
from semflow.data import Sample
from semflow.errors import CheckpointError, ConfigError
from semflow.recipes import build

COMMON = {"backbone": "test_efficientnet", "backbone.weights": "random", "image_size": 64}


def crops(count: int, seed: int = 0) -> list[Sample]:
    return [s._replace(image=s.image[:, :SIZE, :SIZE].clone(), anomaly_mask=None) for s in images(count, seed)]


def trained(**options: Any) -> semflow.Detector:
    settings = {"augment": "rotate,flip,shift,light", "progress": False, "device": "cpu", "epochs": 2, **options}
    return semflow.fit(make_detector(), crops(6), **settings)


def same(a: semflow.Detector, b: semflow.Detector) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


@pytest.mark.parametrize("synthesis", ["recipe", None])
def test_training_is_the_same_with_workers_and_when_resumed(synthesis: Any, tmp_path: Path) -> None:
    one = trained(synthesis=synthesis)
    assert same(one, trained(synthesis=synthesis, workers=2))
    assert not same(one, trained(synthesis=synthesis, augment=()))

    def stop(detector: object, epoch: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"synthesis": synthesis, "output": tmp_path / "run", "checkpoint_seconds": 0}
    with pytest.raises(KeyboardInterrupt):
        trained(on_epoch=stop, **options)
    with pytest.raises(CheckpointError, match="augment"):
        trained(augment="flip", resume=True, **options)
    assert same(one, trained(resume=True, **options))


def test_images_for_calibration_are_not_changed() -> None:
    held = images(9, seed=4)
    options: dict[str, Any] = {"calibration": held, "progress": False, "device": "cpu"}
    plain, other = (semflow.fit(small("patchcore"), images(4), augment=a, **options) for a in ((), ("rotate",)))
    assert plain.provenance.calibration == other.provenance.calibration
    assert plain.provenance.fingerprints == other.provenance.fingerprints
    scores = torch.stack([other.predict(s.image[None]).score[0] for s in held]).sort().values
    torch.testing.assert_close(other.calibration.scores, scores)


@pytest.mark.parametrize("name", ["patchcore", "spade", "memory_flow"])
def test_copies_join_the_memory_of_their_image(name: str) -> None:
    settings = {"patchcore": {"coreset": 1.0}, "spade": {"gallery": 2}, "memory_flow": {"memory": 10**6}}[name]
    cells = {"patchcore": 64, "spade": 256, "memory_flow": 64}[name]
    detectors = []
    for augment in ((), ("rotate",)):
        detector = build(name, {**COMMON, **settings})
        semflow.fit(detector, images(4), augment=augment, epochs=0, progress=False, device="cpu")
        detectors.append(detector.bases[0])
    plain, other = detectors
    if name == "spade":
        assert other.locations.shape[:2] == (4, 5 * plain.locations.shape[1])
        assert torch.equal(other.locations[:, : plain.locations.shape[1]], plain.locations)
        return
    assert torch.equal(other.images.unique(), torch.arange(4))
    assert [int((base.images == 2).sum()) for base in detectors] == [cells, 5 * cells]


def test_each_image_is_scored_without_its_copies() -> None:
    """Of a memory of one image and its copies, nothing is left without the image."""
    good = images(2)
    detector = build("patchcore", {**COMMON, "coreset": 1.0, "image_neighbors": "none", "blur": 0.0})
    semflow.fit(detector, good, augment="flip", progress=False, device="cpu")
    base, maps = detector.bases[0], detector.feature_maps(stack(good[:1]))
    alone = base.normality(maps[0], leave_out=torch.tensor([0]))
    rows = base.vectors[base.images == 1]
    expected = -torch.cdist(maps[0].permute(0, 2, 3, 1).flatten(1, 2), rows[None]).amin(2).view(1, 8, 8)
    torch.testing.assert_close(alone, expected, rtol=1e-3, atol=1e-3)


def test_regions_hold_for_changed_images() -> None:
    region = torch.zeros(64, 64, dtype=torch.bool)
    region[:30, 20:60] = True
    noise = [s._replace(image=torch.where(region, s.image, torch.rand(3, 64, 64))) for s in images(10)]
    for name in ("patchcore", "memory_flow"):
        a, b = (
            semflow.fit(small(name), good, region=region, augment="rotate,shift", progress=False, device="cpu")
            for good in (images(10), noise)
        )
        assert same(a, b)


@pytest.mark.parametrize(("name", "augment"), [("padim", "rotate"), ("patchcore", "spin")])
def test_what_cannot_be_augmented_is_refused(name: str, augment: str) -> None:
    with pytest.raises(ConfigError, match="augment must be"):
        semflow.fit(small(name), images(4), augment=augment, progress=False, device="cpu")
