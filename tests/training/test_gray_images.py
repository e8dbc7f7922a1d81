"""Detectors of gray images equal those of RGB copies bit for bit, and each takes images of the other kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import semflow
from helpers.gray_cases import SIDE, in_rgb, save_both, textures
from semflow._channels import in_color
from semflow.data import Sample, Tiles, open_dataset
from semflow.detectors import Detector, Prediction
from semflow.detectors.regions import see
from semflow.errors import DataError, ShapeError
from semflow.recipes import Backbone, build
from semflow.synthesis import AUGMENTATIONS, Blemishes, CutPaste, Poisson, SyntheticAnomalies, augment
from semflow.training import calibrate, results

RECIPES: dict[str, dict[str, Any]] = {
    "patchcore": {"coreset": 0.2},
    "memory_flow": {
        "couplings.blocks": 1, "couplings.position_channels": 8, "memory": 50, "training.steps": 4,
        "backbone.strides": (4, 8, 16),
    },
    "sanflow": {
        "couplings.blocks": 1, "couplings.position_channels": 8, "training.epochs": 2, "training.batch_size": 4,
        "backbone.strides": (8, 16),
    },
    "differnet": {
        "couplings.blocks": 1, "couplings.hidden": 8, "views": 3, "levels": 2, "training.epochs": 1,
        "training.batch_size": 4,
    },
}  # fmt: skip


def made(name: str, **settings: Any) -> Detector:
    common = {"backbone": "resnet18", "backbone.weights": "random", "image_size": SIDE}
    return build(name, {**common, **RECIPES[name], **settings})


def both(folder: Path, count: int = 12, image_size: int | None = SIDE, **options: Any) -> dict[str, tuple[Any, Any]]:
    """Return the training and test images of the gray folder and of its RGB copy."""
    roots = save_both(folder, count)
    return {root.name: tuple(open_dataset(root, x, image_size, **options) for x in ("train", "test")) for root in roots}


def fitted(name: str, train: Any, test: Any, **options: Any) -> Detector:
    detector = semflow.fit(made(name), train, device="cpu", progress=False, **options)
    return calibrate(detector, test)


def predicted(detector: Detector, test: Any) -> list[Any]:
    return [(*found[1:5], found.mask) for found in results(detector, test, batch_size=4)]


def assert_same(first: list[Any], second: list[Any]) -> None:
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def assert_same_state(a: Detector, b: Detector) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert a.provenance == b.provenance


@pytest.mark.parametrize("resize", ["stretch", "pad"])
@pytest.mark.parametrize("name", RECIPES)
def test_detectors_of_gray_and_rgb_files_are_equal(name: str, resize: str, tmp_path: Path) -> None:
    sets = both(tmp_path, resize=resize)
    assert sets["gray"][0][0].image.shape[0] == (2 if resize == "pad" else 1)
    gray, rgb = (fitted(name, *sets[kind]) for kind in ("gray", "rgb"))
    assert_same_state(gray, rgb)
    expected = predicted(rgb, sets["rgb"][1])
    assert_same(predicted(gray, sets["gray"][1]), expected)
    assert_same(predicted(gray, sets["rgb"][1]), expected)
    assert_same(predicted(rgb, sets["gray"][1]), expected)


def test_several_workers_and_augmentation_change_nothing(tmp_path: Path) -> None:
    sets = both(tmp_path)
    options: dict[str, Any] = {"augment": "rotate,flip,shift,light"}
    gray = fitted("patchcore", *sets["gray"], workers=1, **options)
    assert_same_state(gray, fitted("patchcore", *sets["rgb"], **options))


def test_region_of_the_detector(tmp_path: Path) -> None:
    sets, region = both(tmp_path), torch.ones(SIDE, SIDE).tril() > 0
    gray, rgb = (fitted("sanflow", *sets[kind], region=region) for kind in ("gray", "rgb"))
    assert_same_state(gray, rgb)
    assert_same(predicted(gray, sets["gray"][1]), predicted(rgb, sets["rgb"][1]))


def test_tiles(tmp_path: Path) -> None:
    for kind, convert in (("gray", lambda x: x), ("rgb", in_rgb)):
        for part, seed in (("train", 0), ("test", 1)):
            (tmp_path / kind / part / "good").mkdir(parents=True)
            for number, values in enumerate(textures(10, seed, 100, 140)):
                Image.fromarray(convert(values)).save(tmp_path / kind / part / "good" / f"{number:02d}.png")
    sets = {kind: [open_dataset(tmp_path / kind, part, None) for part in ("train", "test")] for kind in ("gray", "rgb")}
    gray, rgb = (fitted("patchcore", *sets[kind], tiles=Tiles(SIDE, 8)) for kind in ("gray", "rgb"))
    assert_same_state(gray, rgb)
    assert_same(predicted(gray, sets["gray"][1]), predicted(rgb, sets["rgb"][1]))


def test_tiles_of_gray_images_with_regions() -> None:
    image, inside = torch.rand(1, 1, 100, 140), torch.zeros(1, 1, 100, 140)
    inside[..., :50, :40] = 1
    images = torch.cat([image, inside], 1)
    detector = made("patchcore").eval()
    samples = [Sample(x, 0, None, f"{k}.png") for k, x in enumerate(torch.rand(9, 2, 100, 140))]
    samples = [x._replace(image=torch.cat([x.image[:1], inside[0]])) for x in samples]
    semflow.fit(detector, samples, tiles=Tiles(SIDE, 8), device="cpu", progress=False)
    one, other = detector.predict(images), detector.predict(in_color(images))
    assert one.anomaly_map.isneginf().any()
    assert torch.equal(one.anomaly_map, other.anomaly_map)
    assert torch.equal(one.score, other.score)


@pytest.mark.parametrize("name", ["patchcore", "sanflow", "memory_flow"])
def test_folder_with_gray_and_rgb_files(name: str, tmp_path: Path) -> None:
    sets = both(tmp_path)
    mixed = [[part[k] for k in range(12)] for part in sets["rgb"]]
    for part, gray in zip(mixed, sets["gray"], strict=True):
        part[::3] = [gray[k]._replace(path=part[k].path) for k in range(0, 12, 3)]
    one, other = fitted(name, *mixed), fitted(name, *sets["rgb"])
    assert_same(predicted(one, mixed[1]), predicted(other, sets["rgb"][1]))
    assert one.provenance.fingerprints == other.provenance.fingerprints  # whatever batch an image was in


def test_calibration_refuses_a_gray_copy_of_a_training_image(tmp_path: Path) -> None:
    sets = both(tmp_path)
    detector = semflow.fit(made("patchcore"), sets["rgb"][0], device="cpu", progress=False)
    with pytest.raises(DataError, match="must not be a training image"):
        calibrate(detector, sets["gray"][0])


def test_padded_detector_needs_a_region_of_gray_images(tmp_path: Path) -> None:
    detector = semflow.fit(made("patchcore"), both(tmp_path, resize="pad")["gray"][0], device="cpu", progress=False)
    with pytest.raises(ShapeError, match="their region as the last of 2 or 4 channels, as in training, but got 1"):
        detector.predict(torch.rand(1, 1, SIDE, SIDE))


@pytest.mark.parametrize("channels", [1, 2])
def test_seen_gray_images_are_a_view(channels: int) -> None:
    images = torch.rand(2, channels, 8, 8)
    images[:, 1:] = 1  # everywhere inside
    seen = see(images).images
    assert seen.shape == (2, 3, 8, 8)
    assert seen.data_ptr() == images.data_ptr()
    assert torch.equal(seen, in_color(images)[:, :3])


@pytest.mark.parametrize("region", [False, True])
@pytest.mark.parametrize("names", [*((name,) for name in AUGMENTATIONS), AUGMENTATIONS])
def test_augmented_gray_image_stays_gray(names: tuple[str, ...], region: bool) -> None:
    inside = (torch.arange(40) < 30).expand(1, 48, 40).float()
    image = torch.cat([torch.rand(1, 48, 40), inside]) if region else torch.rand(1, 48, 40)
    for seed in range(5):
        gray, rgb = (augment(x, names, np.random.default_rng(seed)) for x in (image, in_color(image)))
        assert gray.shape == image.shape
        assert torch.equal(in_color(gray), rgb)


@pytest.mark.parametrize("region", [False, True])
@pytest.mark.parametrize("synthesis", [CutPaste(), Poisson(), Blemishes()])
def test_synthetic_anomalies_on_gray_images(synthesis: Any, region: bool) -> None:
    inside = torch.ones(1, 64, 64).tril()[: int(region)]
    gray = [Sample(torch.cat([x, inside]), 0, None, "a") for x in torch.rand(4, 1, 64, 64)]
    rgb = [x._replace(image=in_color(x.image)) for x in gray]
    one, other = (SyntheticAnomalies(x, synthesis, seed=3, augment="flip") for x in (gray, rgb))
    for position in range(4):
        assert torch.equal(in_color(one[position].image), other[position].image)
        assert torch.equal(one[position].anomaly_mask, other[position].anomaly_mask)
    assert {len(one[position].image) for position in range(4)} == {1 + region, 3 + region}


def test_predictions_of_a_batch_do_not_depend_on_its_channels() -> None:
    detector = made("memory_flow").eval()
    images = torch.rand(3, 1, SIDE, SIDE)
    detector.fit_base([images])
    detector.fit_score([images])
    found: list[Prediction] = [detector.predict(x) for x in (images, in_color(images), images.expand(-1, 3, -1, -1))]
    for other in found[1:]:
        assert torch.equal(found[0].score, other.score)
        assert torch.equal(found[0].anomaly_map, other.anomaly_map)


def test_backbone_of_the_users_own_sees_three_channels() -> None:
    seen = []

    class Own(torch.nn.Module):
        channels, strides = (4,), (8,)

        def forward(self, images: Tensor) -> list[Tensor]:
            seen.append(tuple(images.shape))
            return [torch.nn.functional.avg_pool2d(images.repeat(1, 2, 1, 1)[:, :4], 8)]

    detector = build("padim", {"backbone": Backbone("resnet18", "random"), "image_size": SIDE, "channels": 4})
    detector.features = Own()
    detector.feature_maps(torch.rand(2, 1, SIDE, SIDE))
    assert seen == [(2, 3, SIDE, SIDE)]
