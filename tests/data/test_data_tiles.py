"""Tiles cover images of any size, and their blended maps are the map of the image."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from semflow.data import ImageDataset, Record, Tiles, open_dataset
from semflow.errors import ConfigError

SIZES = st.integers(1, 24).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size // 2)))
SIDES = st.integers(1, 100)


@given(SIZES, SIDES)
def test_tiles_cover_a_side_and_overlap(tile: tuple[int, int], length: int) -> None:
    tiles = Tiles(*tile)
    starts = tiles.starts(length)
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] + tiles.size == max(length, tiles.size)  # flush with the border
    for one, other in pairwise(starts):
        assert one + tiles.size - other >= tiles.overlap


@settings(max_examples=200)
@given(SIZES, SIDES, SIDES, st.integers(0, 9))
def test_blended_tiles_give_the_image_back(tile: tuple[int, int], height: int, width: int, seed: int) -> None:
    tiles, image = Tiles(*tile), np.random.default_rng(seed).random((height, width), dtype=np.float32)
    parts = [tiles.cut(image, place) for place in tiles.places(height, width)]
    assert {part.shape for part in parts} == {(tiles.size, tiles.size)}
    whole = tiles.blend(parts, height, width)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, image, atol=1e-6)


def test_seam_between_tiles_is_a_linear_ramp() -> None:
    steps = np.repeat([0.0, 1.0], 64).reshape(2, 8, 8)
    seam = Tiles(8, 4).blend(steps, 8, 12)[0]
    assert (seam[:4] == 0).all()
    assert (seam[8:] == 1).all()
    np.testing.assert_allclose(seam[4:8], [0.2, 0.4, 0.6, 0.8])


def test_small_image_is_continued_by_reflection() -> None:
    image = np.arange(6).reshape(1, 2, 3)
    assert Tiles(4, 0).cut(image, (0, 0))[0].tolist() == [[0, 1, 2, 1], [3, 4, 5, 4], [0, 1, 2, 1], [3, 4, 5, 4]]
    assert Tiles(3, 0).cut(image[..., :1, :1], (0, 0)).tolist() == [[[0] * 3] * 3]


def test_batches_of_tiles_are_bounded() -> None:
    batches = list(Tiles(512, 64).batches(np.zeros((3, 1400, 1400), np.uint8)))
    assert [len(batch) for batch in batches] == [2, 2, 2, 2, 1]
    assert len(next(Tiles(4096, 0).batches(np.zeros((1, 10, 10), np.uint8)))) == 1


def test_number_of_tiles_of_a_large_image() -> None:
    assert len(Tiles(512, 64).places(3000, 4000)) == 63
    assert Tiles(512).overlap == 64


@pytest.mark.parametrize(
    ("size", "overlap", "message"),
    [
        (0, 0, "size of tiles must be between 1 and 16384 pixels, but got 0"),
        (20000, 0, "size of tiles must be between 1 and 16384 pixels, but got 20000"),
        (16, 9, "overlap of tiles must be between 0 and half of their size, 8 pixels, but got 9"),
        (16, -1, "overlap of tiles must be between 0 and half of their size, 8 pixels, but got -1"),
        (16.5, 0, "size must be a whole number, but got 16.5"),
    ],
)
def test_invalid_tiles_are_refused(size: int, overlap: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tiles(size, overlap)


def test_images_and_masks_keep_their_own_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folders = {"train/good": 0, "test/good": 0, "test/hole": 255, "ground_truth/hole": 255}
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    pixels = rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)
    mask = np.zeros((30, 50), np.uint8)
    mask[4:9, 40:] = 255
    for name in ("train/good/0.png", "test/good/0.png", "test/hole/0.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    Image.fromarray(mask).save(tmp_path / "ground_truth/hole/0_mask.png")
    good, hole = open_dataset(tmp_path, "test", image_size=None)
    for sample in (good, hole, open_dataset(tmp_path, "train", image_size=None)[0]):
        np.testing.assert_array_equal((sample.image.numpy() * 255).round(), pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(hole.anomaly_mask, mask > 0)
    assert good.anomaly_mask.shape == (30, 50)
    assert not good.anomaly_mask.any()
    one = ImageDataset([Record(tmp_path / "test/hole/0.png", -1)], None)
    assert one[0].image.shape == (3, 30, 50)
