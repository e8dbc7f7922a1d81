"""Detectors of tiles: fitting, calibration, evaluation and prediction on images of any size."""

import gc
import importlib
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import semflow
from helpers.after_epoch import AfterEpoch
from semflow.data import Sample, Tiles
from semflow.detectors import Detector
from semflow.detectors.normal_scores import NormalScores
from semflow.errors import CheckpointError, ConfigError, DataError, ShapeError
from semflow.files.tensors import read_about, save_tensors
from semflow.metrics import auroc
from semflow.recipes import (
    Backbone,
    Couplings,
    PairedCouplings,
    StoredMemory,
    cflow_ad,
    differnet,
    memory_flow,
    padim,
    patchcore,
    remember,
    sanflow,
    spade,
)
from semflow.training import cutting, fitting, results
from semflow.training.checkpoint import MODEL, load_into, save_model
from semflow.training.cutting import TrainingTiles

SIDE, TILES = 32, Tiles(32, 8)
SMALL = Backbone("test_efficientnet", "random", (8,))


def sample(seed: int, height: int = 60, width: int = 90, label: int = 0, masked: bool = False) -> Sample:
    """Return noise of one color per image in 8 bits; labeled images have a square of another color."""
    draws = np.random.default_rng(seed)
    pixels = draws.integers(0, 120, (3, height, width)) + draws.integers(0, 130, (3, 1, 1))
    mask = torch.zeros(height, width, dtype=torch.bool)
    if label == 1:
        mask[20:30, 40:50] = True
        pixels[:, mask.numpy()] = 255 - pixels[:, mask.numpy()]
    image = torch.from_numpy(pixels).float() / 255
    return Sample(image, label, mask if masked else None, f"{seed}.png")


def good(count: int, first: int = 0, **size: int) -> list[Sample]:
    return [sample(first + i, **size) for i in range(count)]


MAKE: dict[str, Callable[[], Detector]] = {
    "cflow_ad": lambda: cflow_ad(SMALL, SIDE, couplings=Couplings(1, 4)),
    "sanflow": lambda: sanflow(SMALL, SIDE, couplings=Couplings(1, 4)),
    "patchcore": lambda: patchcore(replace(SMALL, strides=(8, 16)), SIDE, coreset=0.1, image_neighbors=3),
    "memory_flow": lambda: memory_flow(
        replace(SMALL, strides=(4, 8, 16)), SIDE, couplings=Couplings(1, 4), memory=60, blur=1.0
    ),
    "differnet": lambda: differnet(
        replace(SMALL, strides=(32,)), SIDE, levels=1, views=2, couplings=PairedCouplings(1, 8)
    ),
}


def fitted(recipe: str, images: Any = None, **options: Any) -> Detector:
    epochs = 0 if recipe == "patchcore" else 1
    images = good(11) if images is None else images
    options = {"tiles": TILES, "epochs": epochs, "progress": False, "device": "cpu", **options}
    return semflow.fit(MAKE[recipe](), images, **options)


@pytest.fixture(scope="module")
def plain() -> Detector:
    return fitted("patchcore", calibration=good(9, 100))


@pytest.mark.parametrize("recipe", MAKE)
def test_recipes_fit_and_predict_images_of_any_size(recipe: str, tmp_path: Path) -> None:
    detector = fitted(recipe, good(6) + good(5, 50, height=40, width=31), output=tmp_path / "run", calibration=9)
    assert detector.calibration.count == 9  # images, not tiles
    image = sample(7, height=75, width=41).image[None]
    found = detector.predict(image)
    assert found.anomaly_map.shape == found.mask.shape == (1, 75, 41)
    places = TILES.places(75, 41)
    tiles = torch.stack([image[0, :, top : top + SIDE, left : left + SIDE] for top, left in places])
    torch.testing.assert_close(found.score[0], detector(tiles).score.max(), rtol=1e-5, atol=1e-6)
    again = semflow.load(tmp_path / "run", device="cpu")
    assert again.provenance.tiles == TILES
    for one, other in zip(again.predict(image)[:2], found[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_image_of_one_tile_is_predicted_as_without_tiles(plain: Detector) -> None:
    image = sample(5, SIDE, SIDE).image[None]
    with_tiles, whole = plain.predict(image), plain(image)
    for name in ("score", "anomaly_map", "p_value", "is_anomalous", "mask"):
        torch.testing.assert_close(getattr(with_tiles, name), getattr(whole, name), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (5, 200), (33, 32), (31, 64)])
def test_other_sizes(size: tuple[int, int], plain: Detector) -> None:
    found = plain.predict(torch.rand(2, 3, *size))
    assert found.anomaly_map.shape == (2, *size)
    assert found.anomaly_map.isfinite().all()


def test_images_that_are_none_are_refused(plain: Detector) -> None:
    for images in (torch.rand(3, 40, 40), torch.rand(1, 5, 40, 40), torch.rand(1, 3, 0, 40), "image"):
        with pytest.raises(ShapeError, match="images must"):
            plain.predict(images)
    with pytest.raises(ShapeError, match="must lie in"):
        plain.predict(torch.full((1, 3, 40, 40), torch.nan))


def test_score_is_the_same_whatever_the_batch(plain: Detector) -> None:
    images = [sample(k, 40 + 7 * k, 90 - 5 * k) for k in range(5)]
    alone = [plain.predict(one.image[None]) for one in images]
    for batch_size in (1, 2, 8):
        for found, expected in zip(results(plain, images, batch_size=batch_size), alone, strict=True):
            assert found.score == expected.score.item()
            assert torch.equal(found.anomaly_map, expected.anomaly_map[0])
    same = torch.stack([sample(k).image for k in range(3)])
    together = plain.predict(same)
    for k in range(3):
        assert together.score[k] == plain.predict(same[k : k + 1]).score[0]


def test_metrics_are_of_whole_images(plain: Detector) -> None:
    images = [sample(200 + k, 60 + k, 90, label=k % 2, masked=True) for k in range(6)]
    found = semflow.evaluate(plain, images, batch_size=4)
    predicted = [plain.predict(one.image[None]) for one in images]
    scores, labels = torch.cat([one.score for one in predicted]), torch.tensor([one.label for one in images])
    pixels = torch.cat([one.anomaly_map.flatten() for one in predicted])
    truth = torch.cat([one.anomaly_mask.flatten() for one in images])
    assert found["image_auroc"] == auroc(scores, labels)
    assert found["pixel_auroc"] == pytest.approx(auroc(pixels, truth), abs=1e-9)
    alarms = torch.cat([one.is_anomalous for one in predicted])
    assert found["detection_rate"] == pytest.approx(alarms[labels == 1].double().mean().item())


class Counted(Dataset[Sample]):
    def __init__(self, samples: list[Sample]) -> None:
        self.samples, self.reads = samples, Counter[int]()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        self.reads[index] += 1
        return self.samples[index]


@pytest.mark.parametrize("recipe", ["patchcore", "sanflow"])
def test_each_image_is_read_once(recipe: str) -> None:
    images = Counted(good(11))
    fitted(recipe, images)
    assert images.reads == Counter({0: 3, **dict.fromkeys(range(1, 11), 1)})  # the first for its size and channels


def test_leaving_an_image_out_leaves_out_all_of_its_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [one._replace(image=one.image.mean((1, 2), keepdim=True).expand(-1, 60, 90).clone()) for one in good(6)]
    found: list[NormalScores] = []
    settle = fitting.settle
    monkeypatch.setattr(fitting, "settle", lambda *given: found.append(settle(*given)) or found[0])
    detector = semflow.fit(
        patchcore(replace(SMALL, strides=(8, 16)), SIDE, coreset=200, image_neighbors=None, blur=0.0),
        images, tiles=TILES, progress=False, device="cpu",
    )  # fmt: skip
    assert detector.bases[0].images.unique().tolist() == list(range(6))
    # Each image has one color, so another tile of the same image would be at a distance of about 0.
    assert found[0].scores.shape == (6,)
    assert (found[0].scores > 0.01).all()


def test_calibration_refuses_training_images_and_counts_images(plain: Detector) -> None:
    assert len(plain.provenance.fingerprints) == 11
    with pytest.raises(DataError, match=r"3.png must not be a training image"):
        semflow.calibrate(plain, [*good(9, 20), sample(3)])
    assert semflow.calibrate(fitted("patchcore"), good(9, 20), 0.1).calibration.count == 9
    with pytest.raises(ConfigError, match="at least 9 images"):
        semflow.calibrate(fitted("patchcore"), good(8, 20))
    with pytest.raises(DataError, match=r"2.png must not be a training image"):
        fitted("patchcore", calibration=[*good(9, 20), sample(2)])


def test_hold_out_splits_images() -> None:
    detector = fitted("patchcore", good(20), calibration=9)
    assert detector.calibration.count == 9
    assert len(detector.provenance.fingerprints) == 11


def test_images_that_were_trained_on_are_not_scored_whole() -> None:
    with pytest.raises(ConfigError, match="calibration must be a number or other images with tiles, but got 'cross'"):
        fitted("patchcore", calibration="cross")


def test_anomalous_images_are_refused() -> None:
    # The mask lies outside the tile that would be cut.
    images = [*good(4), sample(4, label=1, masked=True)._replace(label=0)]
    with pytest.raises(DataError, match=r"4.png must be normal, but got a mask with anomalous pixels"):
        fitted("patchcore", images)
    assert fitted("patchcore", images, allow_anomalous=True).provenance.tiles == TILES


def test_number_of_tiles_is_bounded_and_positions_are_as_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "MOST", 24)
    marked = []
    for number in range(12):  # pixels count the rows of tiles of 60 x 90
        image = torch.arange(60 * 90).remainder(251).reshape(1, 60, 90).expand(3, -1, -1) / 255
        marked.append(Sample(image.contiguous(), 0, None, f"{number}.png"))
    tiles = TrainingTiles(marked, Tiles(30, 0))  # 6 positions
    assert (len(tiles), tiles.each) == (24, 2)
    assert tiles.images.tolist() == [k // 2 for k in range(24)]
    places = {
        tuple(marked[0].image[:, top : top + 30, left : left + 30].flatten().tolist()): (top, left)
        for top, left in Tiles(30, 0).places(60, 90)
    }
    found = Counter(places[tuple(tiles[k].image.flatten().tolist())] for k in range(24))
    assert set(found.values()) == {4}
    assert len(TrainingTiles(good(40), TILES)) == 40  # at least one of each image


@pytest.mark.parametrize("workers", [0, 2])
def test_tiles_keep_all_pixels_exactly(workers: int) -> None:
    floats = Sample(torch.rand(3, 64, 64), 0, None, "float.png")
    tiles = TrainingTiles([sample(1, 64, 64), floats], Tiles(32, 0), workers)
    assert len(tiles) == 8
    for k in range(8):
        image = (sample(1, 64, 64), floats)[k // 4].image
        parts = [image[:, top : top + 32, left : left + 32] for top, left in Tiles(32, 0).places(64, 64)]
        assert sum(torch.equal(tiles[k].image, part) for part in parts) == 1


def test_temporary_file_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tiles = TrainingTiles(good(2), TILES)
    assert not list(tmp_path.iterdir())  # nothing is read yet
    _ = tiles[0]
    assert list(tmp_path.rglob("tiles"))
    del tiles
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    importlib.import_module("torch._dynamo")  # an optimizer imports it, and it uses the folder, too
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"must be writable, .*set TMPDIR"):
        fitted("patchcore")


@pytest.mark.parametrize(
    ("make", "tiles", "message"),
    [
        (lambda: padim(replace(SMALL, strides=(4, 8, 16)), SIDE), TILES, "must be None for a PositionGaussian"),
        (lambda: spade(replace(SMALL, strides=(4, 8, 16, 32)), SIDE), TILES, "must be None for a Gallery"),
        (MAKE["cflow_ad"], Tiles(64), "size of tiles must be the image_size of this cflow_ad, 32, but got 64"),
    ],
)
def test_unfit_detectors_are_refused(make: Callable[[], Detector], tiles: Tiles, message: str) -> None:
    detector = make()
    with pytest.raises(ConfigError, match=message):
        semflow.fit(detector, good(4), tiles=tiles, progress=False)
    assert detector.provenance.tiles is None


def test_fitted_detector_keeps_its_tiles(plain: Detector) -> None:
    with pytest.raises(ConfigError, match="must be those that the detector was fitted to"):
        semflow.fit(plain, good(4), tiles=Tiles(SIDE, 0), progress=False)


def test_resumed_run_has_the_same_tiles(tmp_path: Path) -> None:
    full = fitted("sanflow", output=tmp_path / "full", epochs=2)

    def stop(detector: Detector, epoch: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted("sanflow", output=tmp_path / "run", epochs=2, checkpoint_seconds=0.0, callbacks=[AfterEpoch(stop)])
    with pytest.raises(ShapeError, match="must have images of 32 x 32 pixels"):
        fitted("sanflow", output=tmp_path / "run", epochs=2, resume=True, tiles=None)
    with pytest.raises(CheckpointError, match=r"must be resumed with tiles.overlap = 8, but got 4"):
        fitted("sanflow", output=tmp_path / "run", epochs=2, resume=True, tiles=Tiles(SIDE, 4))
    resumed = fitted("sanflow", output=tmp_path / "run", epochs=2, resume=True)
    state = full.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in resumed.state_dict().items())
    with pytest.raises(CheckpointError, match="must be resumed with images"):
        fitted("sanflow", good(10) + good(1, 30), output=tmp_path / "run", epochs=2, resume=True)


@pytest.mark.parametrize("found", [{"size": 32}, {"size": 64, "overlap": 8}, {"size": "a"}, [32, 8], {"width": 3}])
def test_damaged_tiles_of_a_model_are_refused(found: Any, tmp_path: Path, plain: Detector) -> None:
    save_model(plain, tmp_path)
    about = read_about(tmp_path / MODEL)
    assert about["tiles"] == {"size": 32, "overlap": 8}
    other = MAKE["patchcore"]()
    save_tensors(tmp_path / MODEL, plain.state_dict(), {**about, "tiles": found})
    if found == {"size": 32}:
        assert load_into(other, tmp_path).provenance.tiles == Tiles(32)
        return
    with pytest.raises(CheckpointError, match="tiles"):
        load_into(other, tmp_path)


def test_memory_in_place_of_a_base(tmp_path: Path) -> None:
    detector = remember(fitted("cflow_ad"), good(8, 30), StoredMemory(size=0.2), calibration=good(9, 100))
    assert detector.calibration.count == 9
    assert detector.bases[0].images.unique().tolist() == list(range(8))
    semflow.save(detector, tmp_path / "run")
    image = sample(7).image[None]
    loaded = semflow.load(tmp_path / "run", device="cpu")
    assert torch.equal(loaded.predict(image).score, detector.predict(image).score)


def test_share_of_a_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(fitted("patchcore").bases[0].vectors) == int(0.1 * 11 * 12 * 16)
    monkeypatch.setattr(cutting, "STORED", 30)
    detector = fitted("patchcore")
    assert len(detector.bases[0].vectors) == 30
    assert detector.bases[0].size == 0.1


def test_detector_without_a_recipe(build: Callable[..., Detector]) -> None:
    detector = build()
    detector.provenance = replace(detector.provenance, recipe="", image_size=256)
    semflow.fit(detector, good(4), epochs=1, tiles=TILES, progress=False, device="cpu")
    assert detector.predict(sample(9).image[None]).anomaly_map.shape == (1, 60, 90)


def with_region(one: Sample) -> Sample:
    """Add a region of interest of 20 x 30 pixels, which most tiles lie outside of."""
    inside = torch.zeros(1, *one.image.shape[1:])
    inside[:, 20:40, 35:65] = 1
    return one._replace(image=torch.cat([one.image, inside]))


@pytest.mark.parametrize("recipe", ["patchcore", "sanflow"])
def test_nothing_depends_on_what_is_outside_a_region(recipe: str) -> None:
    images, others = ([with_region(one) for one in good(*given)] for given in ((11,), (9, 100)))
    detector = fitted(recipe, images, calibration=others)
    image = with_region(sample(7)).image[None]
    found = detector.predict(image)
    assert found.score.isfinite().all()
    assert torch.equal(found.anomaly_map[0] > -torch.inf, image[0, 3] > 0)
    changed = torch.where(image[:, 3:] > 0, image, 1 - image)
    changed[:, 3] = image[:, 3]
    for one, other in zip(detector.predict(changed)[:2], found[:2], strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ShapeError, match="must have pixels in their region of interest"):
        detector.predict(image * torch.tensor([1.0, 1, 1, 0])[:, None, None])


def test_region_of_all_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="tiles must be None with a region of all images"):
        fitted("patchcore", region=torch.eye(SIDE) > 0)


@pytest.mark.parametrize("recipe", ["memory_flow", "cflow_ad", "sanflow", "differnet"])
def test_tiles_are_computed_a_few_at_a_time_in_the_same_steps(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fitted(pixels: int) -> tuple[Detector, int]:
        monkeypatch.setattr(cutting, "PIXELS", pixels)
        made, most = MAKE[recipe](), [0]
        hook = made.features.register_forward_pre_hook(lambda _, x: most.append(len(x[0])))
        semflow.fit(made, good(4), tiles=TILES, epochs=1, batch_size=4, progress=False, device="cpu")
        hook.remove()
        return made, max(most)

    (whole, all_at_once), (chunked, most) = fitted(2**18), fitted(SIDE**2)
    assert (all_at_once, most) == (4, 1)
    for (name, a), b in zip(whole.flows.state_dict().items(), chunked.flows.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)
