"""Decoding: every pixel format to RGB without clipping, and errors of one line for broken files."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semflow.data import decode_image, load_image, load_mask
from semflow.data.masks import decode_mask
from semflow.data.reading import oriented_size
from semflow.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


def pixel(path: Path, x: int = 0, y: int = 0) -> tuple[int, ...]:
    image = decode_image(path)
    assert image.mode == "RGB"
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_decode_image_converts_plain_modes(tmp_path: Path) -> None:
    assert pixel(save(Image.new("RGB", (2, 3), (1, 2, 3)), tmp_path / "rgb.png")) == (1, 2, 3)
    assert pixel(save(Image.new("L", (2, 3), 77), tmp_path / "gray.png")) == (77, 77, 77)
    assert pixel(save(Image.new("1", (2, 3), 1), tmp_path / "bit.png")) == (255, 255, 255)
    assert pixel(save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "cmyk.tif")) == (255, 0, 0)


def test_decode_image_applies_palettes(tmp_path: Path) -> None:
    image = Image.fromarray(np.uint8([[0, 1]])).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    path = save(image, tmp_path / "palette.png")
    assert (pixel(path, 0), pixel(path, 1)) == ((10, 20, 30), (200, 100, 50))
    path = save(image, tmp_path / "transparent.png", transparency=1)
    assert (pixel(path, 0), pixel(path, 1)) == ((10, 20, 30), (128, 128, 128))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_decode_image_composites_transparent_pixels_over_mid_gray(tmp_path: Path, mode: str) -> None:
    values = {"RGBA": [(9, 8, 7, 255), (250, 1, 1, 0), (0, 0, 0, 128)], "LA": [(9, 255), (250, 0), (0, 128)]}[mode]
    image = Image.new(mode, (3, 1))
    image.putdata(values)
    path = save(image, tmp_path / "alpha.png")
    assert pixel(path, 0) == ((9, 8, 7) if mode == "RGBA" else (9, 9, 9))
    assert pixel(path, 1) == (128, 128, 128)
    assert all(abs(value - 64) <= 1 for value in pixel(path, 2))


def test_decode_image_scales_16_bit_images_by_their_full_range(tmp_path: Path) -> None:
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    for name in ("ramp.png", "ramp.tif"):
        decoded = np.asarray(decode_image(save(Image.fromarray(ramp), tmp_path / name)))
        np.testing.assert_array_equal(decoded[..., 0], np.rint(ramp / 257))
        np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])
    # A dark image stays dark: the range is that of the format, not that of the image.
    with pytest.warns(UserWarning, match=r"dark.png has 16-bit values of at most 257, .* multiply the values by 128"):
        assert pixel(save(Image.fromarray(np.full((4, 4), 257, np.uint16)), tmp_path / "dark.png")) == (1, 1, 1)


def test_decode_image_rejects_32_bit_integers_above_16_bits(tmp_path: Path) -> None:
    assert pixel(save(Image.fromarray(np.int32([[65535]])), tmp_path / "fits.tif")) == (255, 255, 255)
    path = save(Image.fromarray(np.int32([[0, 70000]])), tmp_path / "wide.tif")
    with pytest.raises(DataError, match=r"grayscale values between 0 and 65535, but got .* 70000"):
        decode_image(path)


def test_decode_image_rejects_float_images_outside_the_unit_range(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.float32([[0.0, 0.5, 1.0]])), tmp_path / "unit.tif")
    assert [pixel(path, x)[0] for x in range(3)] == [0, 128, 255]
    for name, values in (("nan", [0.0, np.nan]), ("far", [0.0, 255.0]), ("negative", [-0.5, 1.0])):
        path = save(Image.fromarray(np.float32([values])), tmp_path / f"{name}.tif")
        with pytest.raises(DataError, match=rf"{name}.tif must have float grayscale values in \[0, 1\], but got"):
            decode_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_image_applies_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    """Only the corner that the orientation moves to the top left is bright."""
    stored = np.zeros((32, 64), np.uint8)
    row, column = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}[orientation]
    stored[16 * row : 16 * row + 16, 32 * column : 32 * column + 32] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(stored).convert("RGB")
    path = save(image, tmp_path / f"turned.{suffix}", exif=exif)
    size = (64, 32) if orientation < 5 else (32, 64)
    assert decode_image(path).size == oriented_size(path) == size
    assert pixel(path, 2, 2)[0] > 200
    assert all(pixel(path, x, y)[0] < 50 for x, y in ((size[0] - 3, 2), (2, size[1] - 3), (size[0] - 3, size[1] - 3)))


def test_decode_image_ignores_broken_exif_data(tmp_path: Path) -> None:
    path = save(Image.new("RGB", (8, 8), (255, 0, 0)), tmp_path / "odd.jpg", exif=b"Exif\x00\x00no such thing")
    assert pixel(path)[0] > 200
    assert oriented_size(path) == (8, 8)


def test_load_image_resizes_with_antialiasing_or_keeps_pixels(tmp_path: Path) -> None:
    checker = np.indices((64, 64)).sum(0) % 2 * 255
    path = save(Image.fromarray(checker.astype(np.uint8)), tmp_path / "checker.png")
    small = load_image(path, 8)
    assert small.dtype == torch.float32
    assert small.shape == (3, 8, 8)
    assert (small - 0.5).abs().max() < 0.02
    assert torch.equal(load_image(path, 64)[0], torch.from_numpy(checker / 255).float())
    assert load_image(path, 1).shape == (3, 1, 1)
    wide = save(Image.new("L", (30, 10), 255), tmp_path / "wide.png")
    assert torch.equal(load_image(wide, 16), torch.ones(3, 16, 16))
    with pytest.raises(ConfigError, match="size must be between 1 and 16384 pixels, but got 0"):
        load_image(path, 0)


# --- masks


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16])
@pytest.mark.parametrize("value", [1, 3, 255])
def test_load_mask_marks_every_pixel_that_is_not_black(tmp_path: Path, dtype: type, value: int) -> None:
    truth = RNG.random((12, 12)) < 0.3
    path = save(Image.fromarray(truth if dtype is np.bool_ else (truth * value).astype(dtype)), tmp_path / "mask.png")
    mask = load_mask(path, 12)
    assert mask.dtype == torch.bool
    np.testing.assert_array_equal(mask.numpy(), truth)


def test_load_mask_reads_color_alpha_and_jpeg(tmp_path: Path) -> None:
    truth = np.zeros((32, 32), bool)
    truth[8:24, 8:24] = True
    red = np.zeros((32, 32, 3), np.uint8)
    red[truth] = (200, 0, 0)
    assert torch.equal(load_mask(save(Image.fromarray(red), tmp_path / "red.png"), 32), torch.from_numpy(truth))
    # White everywhere, transparent outside: transparent pixels are not anomalous.
    layer = np.full((32, 32, 4), 255, np.uint8)
    layer[~truth, 3] = 0
    assert torch.equal(load_mask(save(Image.fromarray(layer), tmp_path / "layer.png"), 32), torch.from_numpy(truth))
    # Not aligned with the 8 x 8 blocks of JPEG, so black is not exact.
    moved = np.roll(truth, (3, 3), (0, 1))
    jpeg = save(Image.fromarray((moved * 255).astype(np.uint8)), tmp_path / "mask.jpg", quality=50)
    assert len(np.unique(np.asarray(Image.open(jpeg)))) > 2
    with pytest.warns(UserWarning, match=r"mask.jpg has gray levels \(\d+\), as lossy compression"):
        assert torch.equal(load_mask(jpeg, 32), torch.from_numpy(moved))


@pytest.mark.parametrize(
    ("palette", "expected"),
    [
        ([0, 0, 0] * 3, [[False, True], [True, False]]),  # class indices without colors
        ([0, 0, 0, 128, 0, 0, 0, 128, 0], [[False, True], [True, False]]),
        ([255, 255, 255, 0, 0, 0, 9, 9, 9], [[True, False], [True, True]]),  # class 0 is white
    ],
)
def test_decode_mask_reads_palettes(tmp_path: Path, palette: list[int], expected: list[list[bool]]) -> None:
    image = Image.fromarray(np.uint8([[0, 1], [2, 0]])).convert("P")
    image.putdata([0, 1, 2, 0])
    image.putpalette(palette)
    assert decode_mask(save(image, tmp_path / "classes.png")).tolist() == expected


def test_load_mask_resizes_by_nearest_neighbor(tmp_path: Path) -> None:
    truth = np.zeros((64, 64), np.uint8)
    truth[:, 32:] = 255
    path = save(Image.fromarray(truth), tmp_path / "half.png")
    np.testing.assert_array_equal(load_mask(path, 16).numpy()[0], [False] * 8 + [True] * 8)
    noise = RNG.random((64, 64)) < 0.5
    path = save(Image.fromarray((noise * 255).astype(np.uint8)), tmp_path / "noise.png")
    np.testing.assert_array_equal(load_mask(path, 16).numpy(), noise[2::4, 2::4])
    path = save(Image.fromarray(truth), tmp_path / "half.png")
    np.testing.assert_array_equal(load_mask(path, 128).numpy()[0], [False] * 64 + [True] * 64)


def test_load_mask_rejects_a_size_other_than_the_image_size(tmp_path: Path) -> None:
    path = save(Image.new("L", (20, 10)), tmp_path / "mask.png")
    assert load_mask(path, 8, (20, 10)).shape == (8, 8)
    with pytest.raises(DataError, match=r"mask.png must have .* 10 x 20 pixels, but got 20 x 10; create the mask"):
        load_mask(path, 8, (10, 20))


# --- broken files


def encoded(suffix: str) -> bytes:
    buffer = io.BytesIO()
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    return buffer.getvalue()


def one_line(function: Callable[[], object], path: Path) -> str:
    with pytest.raises(DataError) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path} must ")
    assert ", but got " in message
    assert not message.endswith(".")
    assert "; " in message  # followed by advice
    assert caught.value.__suppress_context__
    return message


@pytest.mark.filterwarnings("ignore:Truncated File Read")  # a warning of Pillow, in addition to the error
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "gif", "webp"])
@pytest.mark.parametrize("keep", [0.9, 0.5, 0.1, 0.01])
def test_load_image_and_load_mask_reject_truncated_files(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"cut.{suffix}"
    data = encoded(suffix)
    path.write_bytes(data[: int(len(data) * keep)])
    for read in (lambda: load_image(path, 8), lambda: load_mask(path, 8)):
        message = one_line(read, path)
        assert message.count(str(path)) == 1


def test_decode_image_raises_only_data_errors_for_flipped_bytes(tmp_path: Path) -> None:
    path = tmp_path / "bent.png"
    data = bytearray(encoded("png"))
    messages = []
    for place in range(0, len(data), 211):
        bent = data.copy()
        bent[place] ^= 0xFF
        path.write_bytes(bent)
        try:
            assert decode_image(path).mode == "RGB"
        except DataError as error:
            messages.append(str(error))
    assert messages
    assert all(message.startswith(f"{path} must ") for message in messages)


def test_decode_image_rejects_files_that_are_not_images(tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("no image at all")
    assert "cannot identify" in one_line(lambda: decode_image(text), text)
    empty = tmp_path / "empty.png"
    empty.touch()
    assert "an empty file" in one_line(lambda: decode_image(empty), empty)
    assert "an empty file" in one_line(lambda: oriented_size(empty), empty)
    missing = tmp_path / "missing.png"
    assert "no such file" in one_line(lambda: decode_image(missing), missing)
    assert "got a folder" in one_line(lambda: decode_image(tmp_path), tmp_path)


def test_decode_image_rejects_images_above_pillows_pixel_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Image.new("L", (100, 100)), tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "must have at most 2000 pixels" in one_line(lambda: decode_image(path), path)
