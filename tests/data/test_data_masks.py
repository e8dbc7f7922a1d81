"""Masks are judged by their content and codec: lossy pixels in any container, smooth edges, colors, inverted masks."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from helpers.data_cases import save_gray
from semflow.data import MVTecAD
from semflow.data.masks import anomalous_pixels, decode_mask
from semflow.errors import DataError

Mask = NDArray[np.bool_]
GRAY = r" has gray (levels|edges)"
INVERTED = r" marks \d+% of the image as anomalous; check that normal pixels are black"


def drawn(scale: int = 8) -> Image.Image:
    """Draw a large ellipse, a small one and a scratch, smooth at the edges."""
    image = Image.new("L", (96 * scale, 96 * scale))
    draw = ImageDraw.Draw(image)
    draw.ellipse([scale * x for x in (20, 20, 60, 45)], fill=255)
    draw.ellipse([scale * x for x in (70, 10, 76, 17)], fill=255)
    draw.line([scale * x for x in (10, 60, 85, 80)], fill=255, width=3 * scale)
    return image.resize((96, 96), Image.Resampling.BOX)


SMOOTH = drawn()
TRUTH: Mask = np.asarray(SMOOTH) > 127
EXACT = Image.fromarray((TRUTH * 255).astype(np.uint8))


def overlap(found: Mask, truth: Mask = TRUTH) -> float:
    return float((found & truth).sum() / (found | truth).sum())


def quietly(path: Path) -> Mask:
    """Decode a mask that must not cause a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return decode_mask(path)


@pytest.mark.parametrize("quality", [20, 50, 75, 90, 95])
@pytest.mark.parametrize("codec", ["JPEG", "WEBP", "JPEG2000"])
@pytest.mark.parametrize("container", ["own", "png", "bmp", "tif", "gif"])
def test_lossy_pixels_in_any_container_are_cut_at_half(
    tmp_path: Path, codec: str, quality: int, container: str
) -> None:
    buffer = io.BytesIO()
    lossy = {"irreversible": True, "quality_mode": "dB", "quality_layers": [20 + quality // 4]}
    EXACT.save(buffer, codec, **(lossy if codec == "JPEG2000" else {"quality": quality}))
    path = tmp_path / f"mask.{container}"
    if container == "own":
        path = tmp_path / f"mask.{codec.lower().replace('jpeg2000', 'jp2')}"
        path.write_bytes(buffer.getvalue())
    else:
        Image.open(buffer).convert("L").save(path)
    with pytest.warns(UserWarning, match=r"mask\.\w+ has (gray|specks).* count as anomalous; save masks as PNG"):
        assert overlap(decode_mask(path)) > 0.97


@pytest.mark.parametrize("value", [1, 3, 255])
@pytest.mark.parametrize("name", ["a.webp", "a.jp2", "a.j2k", "a.png", "a.tif"])
def test_lossless_codecs_keep_every_label(tmp_path: Path, name: str, value: int) -> None:
    options = {"lossless": True} if name == "a.webp" else {}
    Image.fromarray((TRUTH * value).astype(np.uint8)).save(tmp_path / name, **options)
    np.testing.assert_array_equal(quietly(tmp_path / name), TRUTH)


def test_black_jpeg_is_empty_in_spite_of_noise(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 5, (64, 64)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=95)
    assert not quietly(tmp_path / "a.jpg").any()


@pytest.mark.parametrize("levels", [3, 4, 8, 256])
def test_smooth_edges_are_cut_at_half(tmp_path: Path, levels: int) -> None:
    steps = np.round(np.asarray(SMOOTH) / 255 * (levels - 1)) / (levels - 1)
    for name, values in (
        ("8.png", np.round(255 * steps).astype(np.uint8)),
        ("16.png", np.round(65535 * steps).astype(np.uint16)),
        ("float.tif", steps.astype(np.float32)),
    ):
        Image.fromarray(values).save(tmp_path / name)
        with pytest.warns(UserWarning, match=name + GRAY):
            found = decode_mask(tmp_path / name)
        np.testing.assert_array_equal(found, values > values.max() / 2)


def test_blurred_and_resized_masks_are_a_warning(tmp_path: Path) -> None:
    for name, image in (
        ("blurred.png", EXACT.filter(ImageFilter.GaussianBlur(1))),
        ("resized.png", EXACT.resize((50, 50), Image.Resampling.BICUBIC).resize((96, 96), Image.Resampling.BICUBIC)),
    ):
        image.save(tmp_path / name)
        with pytest.warns(UserWarning, match=name + GRAY):
            assert overlap(decode_mask(tmp_path / name)) > 0.6


def test_labels_of_every_kind_are_exact_and_quiet(tmp_path: Path) -> None:
    classes = np.zeros((96, 96), np.uint8)
    for k in range(25):
        row, column = 19 * (k // 5), 19 * (k % 5)
        classes[row + 2 : row + 16, column + 2 : column + 16] = k + 1
    thin = np.zeros((96, 96), np.uint8)
    thin[10:30, 10:30], thin[50:80, 50:80], thin[90:93, 5:60] = 50, 255, 100
    ignore = np.zeros((96, 96), np.uint8)
    ignore[10:40, 10:40], ignore[60:80, 60:80] = 1, 255
    for name, labels in (("classes", classes), ("spread", 10 * classes), ("thin", thin), ("ignore", ignore)):
        Image.fromarray(labels).save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(quietly(tmp_path / f"{name}.png"), labels > 0)


@pytest.mark.parametrize("palette", [(30, 30, 200, 255, 255, 0), (255, 255, 255, 255, 0, 0), (68, 1, 84, 253, 231, 36)])
def test_first_color_of_a_palette_without_black_is_the_background(tmp_path: Path, palette: tuple[int, ...]) -> None:
    image = Image.new("P", (96, 96))
    image.putdata(TRUTH.astype(int).ravel().tolist())
    image.putpalette(palette)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(quietly(tmp_path / "a.png"), TRUTH)
    image.convert("RGB").save(tmp_path / "colors.png")  # nothing tells which color is the background
    with pytest.warns(UserWarning, match=r"colors\.png marks 100% of the image"):
        decode_mask(tmp_path / "colors.png")


def test_dark_gray_background_is_normal(tmp_path: Path) -> None:
    Image.fromarray(np.where(TRUTH, 235, 16).astype(np.uint8)).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match=r"a\.png has no black pixel, so its pixels above 117\.5"):
        np.testing.assert_array_equal(decode_mask(tmp_path / "a.png"), TRUTH)


def test_inverted_and_full_masks_are_a_warning(tmp_path: Path) -> None:
    large = np.zeros((40, 40), bool)
    large[8:32, 8:32] = True  # inverted, it marks less than nearly everything
    for name, mask in (("inverted", ~TRUTH), ("full", np.ones((8, 8), bool)), ("large", ~large)):
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
        with pytest.warns(UserWarning, match=name + r"\.png" + INVERTED):
            np.testing.assert_array_equal(decode_mask(tmp_path / f"{name}.png"), mask)
    wide = np.ones((40, 40), bool)
    wide[:, :10] = False  # most of the image, and not all of its border
    Image.fromarray(wide).save(tmp_path / "wide.png")
    np.testing.assert_array_equal(quietly(tmp_path / "wide.png"), wide)


def test_mask_layer_that_is_transparent_everywhere_keeps_its_colors(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([TRUTH * np.uint8(255)] * 3 + [0 * TRUTH.astype(np.uint8)])).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match=r"a\.png has no visible pixel"):
        np.testing.assert_array_equal(decode_mask(tmp_path / "a.png"), TRUTH)


def test_mask_of_nan_is_refused() -> None:
    with pytest.raises(DataError, match="m must have finite values, but got NaN"):
        anomalous_pixels(np.array([[np.nan, 1.0]]), "m")


def test_data_set_names_each_doubtful_mask(tmp_path: Path) -> None:
    for k in range(2):
        save_gray(tmp_path / f"test/hole/{k}.png", size=(96, 96))
        (tmp_path / "ground_truth/hole").mkdir(parents=True, exist_ok=True)
        SMOOTH.save(tmp_path / f"ground_truth/hole/{k}_mask.png")
    dataset = MVTecAD(tmp_path, "test", 32)
    with pytest.warns(UserWarning, match=r"mask\.png has gray") as caught:
        dataset.verify()
    assert [f"{k}_mask.png" in str(item.message) for k, item in enumerate(caught)] == [True, True]
