"""Images of another size than the detector's are an error wherever they would ruin decisions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import Subset

import semflow
from helpers.recipe_cases import ALL, COMMON, SMALL
from semflow.data import Sample
from semflow.detectors import Detector
from semflow.errors import ConfigError, ShapeError
from semflow.recipes import Backbone, Couplings, StoredMemory, build, cflow_ad, remember

SIDE = 32


def samples(count: int, height: int = SIDE, width: int | None = None, first: int = 0) -> list[Sample]:
    draws = torch.Generator().manual_seed(first)
    size = (3, height, height if width is None else width)
    return [Sample(torch.rand(size, generator=draws), i % 2, None, f"{first + i}.png") for i in range(count)]


def good(count: int, *size: int, first: int = 0) -> list[Sample]:
    return [sample._replace(label=0) for sample in samples(count, *size, first=first)]


def small() -> Detector:
    return cflow_ad(Backbone("test_efficientnet", "random", (8,)), SIDE, couplings=Couplings(1, 4))


@pytest.fixture(scope="module")
def fitted() -> Detector:
    return semflow.fit(small(), good(4), epochs=1, calibration=good(9, first=50), progress=False, device="cpu")


USES: dict[str, Callable[[Detector, int, int], Any]] = {
    "fit": lambda d, *size: semflow.fit(small(), good(4, *size), epochs=1, progress=False, device="cpu"),
    "fit a part": lambda d, *size: semflow.fit(small(), Subset(good(4, *size), [1, 2]), progress=False, device="cpu"),
    "hold out": lambda d, *size: semflow.fit(small(), good(12, *size), calibration=9, progress=False, device="cpu"),
    "calibration of fit": lambda d, *size: semflow.fit(
        small(), good(4), epochs=1, calibration=good(9, *size, first=50), progress=False, device="cpu"
    ),
    "calibrate": lambda d, *size: semflow.calibrate(d, good(9, *size, first=100)),
    "calibrate before training": lambda d, *size: semflow.calibrate(small(), good(9, *size)),
    "calibrate batches": lambda d, *size: d.calibrate([torch.stack([s.image for s in good(9, *size)])]),
    "remember": lambda d, *size: remember(small(), good(4, *size), StoredMemory(size=0.5)),
    "evaluate": lambda d, *size: semflow.evaluate(d, samples(4, *size)),
    "predict": lambda d, *size: d.predict(torch.rand(1, 3, *size)),
    "call": lambda d, *size: d(torch.rand(1, 3, *size)),
}


@pytest.mark.parametrize("size", [(64, 64), (16, 16), (32, 64)])
@pytest.mark.parametrize("use", USES)
def test_other_sizes_are_refused(use: str, size: tuple[int, int], fitted: Detector) -> None:
    before = fitted.calibration.scores.clone()
    expected = f"must have images of 32 x 32 pixels, the image_size of this cflow_ad, but got {size[0]} x {size[1]}; "
    with pytest.raises(ShapeError, match=expected):
        USES[use](fitted, *size)
    assert torch.equal(fitted.calibration.scores, before)


def test_a_run_is_not_begun_with_other_sizes(tmp_path: Any) -> None:
    with pytest.raises(ShapeError):
        semflow.fit(small(), good(4, 64), epochs=1, progress=False, output=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_loaded_detector_keeps_its_size(tmp_path: Any, fitted: Detector) -> None:
    loaded = semflow.load(semflow.save(fitted, tmp_path / "run"), device="cpu")
    with pytest.raises(ShapeError, match="32 x 32"):
        loaded.predict(torch.rand(1, 3, 64, 64))
    assert loaded.predict(torch.rand(1, 3, SIDE, SIDE)).is_anomalous is not None


def test_an_unfitted_detector_takes_any_size() -> None:
    assert small().predict(torch.rand(1, 3, 64, 64)).anomaly_map.shape == (1, 64, 64)


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_takes_height_and_width(name: str, tmp_path: Any) -> None:
    size = (64, 96)
    detector = build(name, {**COMMON, **SMALL[name], "image_size": size})
    epochs = {} if not detector.trainable() or detector.provenance.training.steps else {"epochs": 1}
    semflow.fit(detector, good(4, *size), batch_size=4, progress=False, device="cpu", **epochs)
    loaded = semflow.load(semflow.save(detector, tmp_path / "run"), device="cpu")
    assert loaded.provenance.image_size == detector.provenance.image_size == size
    tested = torch.stack([s.image for s in good(2, *size, first=9)])
    found = loaded.predict(tested)
    assert found.anomaly_map.shape == (2, *size)
    assert torch.equal(found.score, detector.predict(tested).score)
    with pytest.raises(
        ShapeError, match=r"of 64 x 96 pixels, the image_size of this .*, but got 96 x 64; load them with"
    ):
        loaded.predict(tested.mT)


def test_a_square_given_as_height_and_width_is_a_side() -> None:
    detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), (SIDE, SIDE), couplings=Couplings(1, 4))
    assert detector.provenance.image_size == SIDE


def test_a_transformer_names_the_multiple_that_it_needs() -> None:
    detector = build("fastflow", {"backbone": "test_vit", "backbone.weights": "random", "image_size": (32, 48)})
    assert detector.predict(torch.rand(1, 3, 32, 48)).anomaly_map.shape == (1, 32, 48)
    with pytest.raises(ConfigError, match=r"multiples of 16 .*, but got \(40, 48\); use image_size=48"):
        build("fastflow", {"backbone": "test_vit", "backbone.weights": "random", "image_size": (40, 48)})


@pytest.mark.parametrize("size", [(64,), (64, 0), (64, 64, 64), "64x64", (64.5, 64)])
def test_wrong_sizes_are_refused(size: Any) -> None:
    with pytest.raises(ConfigError, match="image_size must be"):
        build("patchcore", {**COMMON, "image_size": size})
