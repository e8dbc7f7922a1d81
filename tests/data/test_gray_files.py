"""Gray files stay gray, with the values of the same images saved as RGB."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.gray_cases import in_rgb, save_both, textures
from semflow.data import ImageFolder, as_sample, collate, decode_image, load_image, open_dataset
from semflow.data.samples import hash_image
from semflow.errors import DataError, ShapeError

(TEXTURE,) = textures(1)


def save_wide_tiff(path: Path) -> None:
    Image.fromarray(TEXTURE.astype(np.uint16) * 257).save(path)


SAVED: dict[str, tuple[str, Callable[[Path], None]]] = {
    "L": ("png", lambda path: Image.fromarray(TEXTURE).save(path)),
    "L of BMP": ("bmp", lambda path: Image.fromarray(TEXTURE).save(path)),
    "1": ("png", lambda path: Image.fromarray(TEXTURE > 120).save(path)),
    "I;16 PNG": ("png", save_wide_tiff),
    "I;16 TIFF": ("tif", save_wide_tiff),
    "F": ("tif", lambda path: Image.fromarray((TEXTURE / 255).astype(np.float32)).save(path)),
}


@pytest.mark.parametrize("size", [(24, 40), (72, 60), None, 96])
@pytest.mark.parametrize("resize", ["stretch", "pad"])
@pytest.mark.parametrize("mode", SAVED)
def test_values_equal_those_of_the_rgb_file(mode: str, resize: str, size: int | None, tmp_path: Path) -> None:
    ending, save = SAVED[mode]
    for folder in ("gray", "rgb"):
        (tmp_path / folder).mkdir()
    save(tmp_path / "gray" / f"a.{ending}")
    expected = 255 * (TEXTURE > 120).astype(np.uint8) if mode == "1" else TEXTURE
    Image.fromarray(in_rgb(expected)).save(tmp_path / "rgb" / "a.png")
    gray, rgb = (ImageFolder(tmp_path / kind, size, resize=resize)[0].image for kind in ("gray", "rgb"))
    assert (len(gray), len(rgb)) == ((2, 4) if resize == "pad" else (1, 3))
    for channel in range(3):
        assert torch.equal(gray[0], rgb[channel])
    assert torch.equal(gray[1:], rgb[3:])
    assert hash_image(gray) == hash_image(rgb)
    if size is not None:
        loaded = load_image(tmp_path / "gray" / f"a.{ending}", size, resize)
        assert torch.equal(loaded, rgb)
    assert decode_image(tmp_path / "gray" / f"a.{ending}").mode == "RGB"


@pytest.mark.parametrize("mode", ["LA", "P", "RGBA", "CMYK"])
def test_other_modes_stay_rgb(mode: str, tmp_path: Path) -> None:
    ending = "tif" if mode == "CMYK" else "png"
    Image.fromarray(TEXTURE).convert("RGB" if mode == "CMYK" else "L").convert(mode).save(tmp_path / f"a.{ending}")
    assert ImageFolder(tmp_path, 16)[0].image.shape == (3, 16, 16)


def test_gray_with_a_transparent_level_stays_rgb(tmp_path: Path) -> None:
    Image.fromarray(TEXTURE).save(tmp_path / "a.png", transparency=int(TEXTURE[0, 0]))
    assert ImageFolder(tmp_path, 16)[0].image.shape == (3, 16, 16)


@pytest.mark.parametrize("resize", ["stretch", "pad"])
def test_gray_image_has_its_region_as_second_channel(resize: str, tmp_path: Path) -> None:
    roots = save_both(tmp_path, 1)
    inside = np.zeros(TEXTURE.shape, np.uint8)
    inside[:40, 10:] = 255
    Image.fromarray(inside).save(tmp_path / "mask.png")
    gray, rgb = (
        open_dataset(root, "test", 32, resize=resize, regions=tmp_path / "mask.png")[0].image for root in roots
    )
    assert torch.equal(gray, rgb[2:])
    assert 0 < gray[1].mean() < 1


def test_cache_takes_a_third_of_the_memory(tmp_path: Path) -> None:
    sizes = []
    for root in save_both(tmp_path, 3):
        dataset = open_dataset(root, "train", 32, cache=True)
        dataset.verify()
        sizes.append(sum(pixels.nbytes for pixels, _ in dataset._decoded.values()))
    assert sizes == [3 * 32 * 32, 9 * 32 * 32]


@pytest.mark.parametrize("region", [False, True])
def test_batch_of_gray_and_color_repeats_gray(region: bool) -> None:
    inside = torch.eye(8)[None][: int(region)]
    gray, color = torch.rand(1, 8, 8), torch.rand(3, 8, 8)
    batch = collate([torch.cat([gray, inside]), torch.cat([color, inside])])
    assert torch.equal(batch.images[0], torch.cat([gray, gray, gray, inside]))
    assert torch.equal(batch.images[1], torch.cat([color, inside]))
    assert collate([torch.cat([gray, inside])] * 2).images.shape[1] == 1 + region


def test_batch_of_images_with_and_without_region_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"one size, but got \(4, 8, 8\) .* and \(3, 8, 8\)"):
        collate([torch.ones(2, 8, 8), torch.ones(3, 8, 8)])


def test_second_channel_must_be_a_region() -> None:
    with pytest.raises(ShapeError, match="must have 0 or 1 as its last of 2 channels"):
        as_sample(torch.full((2, 8, 8), 0.5), "a")
    with pytest.raises(DataError, match="the last channel, but got none"):
        as_sample(torch.stack([torch.ones(8, 8), torch.zeros(8, 8)]), "a")
