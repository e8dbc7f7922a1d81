"""Sizes of any proportions, padding, and the masks of regions in every way of opening images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semflow.data import ImageDataset, Record, Sample, load_image, load_mask, load_region, open_dataset
from semflow.data.resizing import placement, resize_image, resize_mask
from semflow.errors import ConfigError, DataError, ShapeError


def random_image(width: int, height: int, path: Path | None = None, seed: int = 0) -> Image.Image:
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return image


@pytest.mark.parametrize("picture", [(1, 1), (3, 1000), (1000, 3), (64, 48), (48, 64), (17, 5), (63, 64)])
@pytest.mark.parametrize("size", [1, 64, (48, 64), (64, 48), (7, 100)])
def test_padding_keeps_proportions_in_the_middle(picture: tuple[int, int], size: int | tuple[int, int]) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    box = placement(picture, size, "pad")
    assert 1 <= box.height <= height
    assert 1 <= box.width <= width
    assert box.height == height or box.width == width
    scale = min(height / picture[1], width / picture[0])
    assert abs(box.height - max(1, scale * picture[1])) <= 0.5
    assert abs(box.width - max(1, scale * picture[0])) <= 0.5
    assert abs(2 * box.top + box.height - height) <= 1
    assert abs(2 * box.left + box.width - width) <= 1
    assert placement(picture, size) == (0, 0, height, width)


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (33, 33), (5, 90)])
def test_padded_images_hold_the_resized_picture_and_its_region(width: int, height: int) -> None:
    image, size = random_image(width, height), (32, 48)
    padded, box = resize_image(image, size, "pad"), placement((width, height), size, "pad")
    assert padded.shape == (4, *size)
    inner = resize_image(image, (box.height, box.width))
    assert np.array_equal(padded[:3, *box.slices], inner)
    assert np.array_equal(padded[3] > 0, resize_mask(np.ones((height, width), bool), size, "pad"))
    assert (padded[:3, padded[3] == 0] == 128).all()
    assert set(np.unique(padded[3])) <= {0, 255}
    assert np.array_equal(resize_image(image, size), np.asarray(image.resize((48, 32), 2)).transpose(2, 0, 1))


def test_loaders_take_sizes_and_padding(tmp_path: Path) -> None:
    random_image(40, 20, tmp_path / "a.png")
    Image.new("L", (40, 20), 255).save(tmp_path / "region.png")
    half = Image.new("L", (40, 20))
    half.paste(255, (0, 0, 20, 20))
    half.save(tmp_path / "mask.png")
    assert load_image(tmp_path / "a.png", (8, 24)).shape == (3, 8, 24)
    assert load_image(tmp_path / "a.png", [8, 24], "pad").shape == (4, 8, 24)
    assert load_mask(tmp_path / "mask.png", (16, 16), resize="pad").sum() == 8 * 8
    assert torch.equal(
        load_region(tmp_path / "region.png", 16, "pad"), load_image(tmp_path / "a.png", 16, "pad")[3] > 0
    )
    for size in (0, (8, 0), (8, 99999)):
        with pytest.raises(ConfigError, match="size must be between 1 and 16384 pixels"):
            load_image(tmp_path / "a.png", size)
    for size in ((8,), (8, 8, 8), 2.5, "8"):
        with pytest.raises(ConfigError, match="size must be a whole number or"):
            load_image(tmp_path / "a.png", size)
    with pytest.raises(ConfigError, match="resize must be stretch or pad, but got 'crop'"):
        load_image(tmp_path / "a.png", 8, "crop")


@pytest.mark.parametrize("cache", [False, True])
def test_data_sets_pad_images_and_masks_alike(tmp_path: Path, cache: bool) -> None:
    random_image(40, 20, tmp_path / "test/good/0.png")
    random_image(20, 40, tmp_path / "test/bad/1.png")
    mask = Image.new("L", (20, 40))
    mask.paste(255, (0, 0, 10, 40))
    (tmp_path / "ground_truth/bad").mkdir(parents=True)
    mask.save(tmp_path / "ground_truth/bad/1_mask.png")
    opened = open_dataset(tmp_path, "test", (32, 64), resize="pad", cache=cache)
    assert opened.shape == (4, 32, 64)
    for _ in range(2):
        bad, good = opened[0], opened[1]
        assert (bad.image.shape, good.image.shape) == ((4, 32, 64), (4, 32, 64))
        assert good.image[3].sum() == 32 * 64
        assert bad.image[3].sum() == 32 * 16
        assert bad.anomaly_mask.sum() == 32 * 8
        assert not (bad.anomaly_mask & (bad.image[3] == 0)).any()
    assert ImageDataset([Record(tmp_path / "test/good/0.png", 0)], (16, 16)).image_size == 16


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    for name in ("good/0", "good/1", "bad/0"):
        random_image(40, 20, tmp_path / "data" / f"{name}.png")
    for k, name in enumerate(("good/0.png", "good/1_mask.png", "bad/0.tif")):
        mask = Image.new("L", (40, 20))
        mask.paste(255, (0, 0, 10 * (k + 1), 20))
        (tmp_path / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        mask.save(tmp_path / "masks" / name)
    return tmp_path


def shares(dataset: ImageDataset) -> list[float]:
    return [dataset[k].image[3].mean().item() for k in range(len(dataset))]


def test_regions_have_the_names_of_their_images(parts: Path) -> None:
    data, masks = parts / "data", parts / "masks"
    assert shares(open_dataset(data, "test", 16, regions=masks)) == [0.75, 0.25, 0.5]
    assert shares(open_dataset(data / "good", "train", 16, regions=masks / "good")) == [0.25, 0.5]
    assert shares(open_dataset(data / "good/0.png", "predict", 16, regions=masks / "good")) == [0.25]
    assert shares(open_dataset(data, "predict", 16, regions=masks / "bad/0.tif")) == [0.75] * 3
    padded = open_dataset(data, "test", 16, regions=masks, resize="pad")
    assert shares(padded) == [0.375, 0.125, 0.25]


def test_wrong_regions_are_named(parts: Path) -> None:
    data, masks = parts / "data", parts / "masks"
    with pytest.raises(DataError, match=r"1\.png must have a region .*masks/1\.png, but got none"):
        open_dataset(data, "test", 16, regions=_without(masks, "good/1_mask.png"))
    Image.new("L", (40, 20), 255).save(masks / "good/1.jpg", quality=95)
    Image.new("L", (40, 20), 255).save(masks / "good/1.png")
    with pytest.raises(DataError, match=r"1\.png must have one region, but got"):
        open_dataset(data, "test", 16, regions=masks)
    with pytest.raises(DataError, match=r"0\.png must be the region of one image, but got"):
        open_dataset(data, "test", 16, regions=masks / "good")
    with pytest.raises(DataError, match="must be a mask or a folder of masks, but got no such path"):
        open_dataset(data, "test", 16, regions=masks / "none")
    Image.new("L", (40, 40), 255).save(masks / "square.png")
    with pytest.raises(DataError, match="must have the proportions of its images, 40 x 20 pixels, but got 40 x 40"):
        open_dataset(data, "test", 16, regions=masks / "square.png")[0]
    Image.new("L", (40, 20)).save(masks / "black.png")
    with pytest.raises(DataError, match="must mark the region of interest, but got only black"):
        open_dataset(data, "test", 16, regions=masks / "black.png")[0]


def _without(masks: Path, name: str) -> Path:
    (masks / name).unlink()
    return masks


def test_smaller_masks_of_the_same_proportions_are_taken(parts: Path, recwarn: pytest.WarningsRecorder) -> None:
    Image.new("L", (20, 10), 255).save(parts / "half.png")
    assert shares(open_dataset(parts / "data", "test", 16, regions=parts / "half.png")) == [1.0] * 3
    assert not recwarn  # a region may cover everything


@pytest.mark.parametrize("channels", [0, 5])
def test_images_have_one_to_four_channels(channels: int) -> None:
    from semflow.data import as_sample

    assert all(isinstance(as_sample(torch.ones(known, 8, 8), "a"), Sample) for known in (1, 2, 3, 4))
    with pytest.raises(ShapeError, match="must be float"):
        as_sample(torch.ones(channels, 8, 8), "a")
