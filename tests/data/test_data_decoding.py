"""Decoding: every pixel format to RGB without clipping, and one line for every broken file."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semflow.data import decode_image, load_image, load_mask
from semflow.data.decoding import decode_mask, oriented_size
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


def test_plain_modes(tmp_path: Path) -> None:
    assert pixel(save(Image.new("RGB", (2, 3), (1, 2, 3)), tmp_path / "rgb.png")) == (1, 2, 3)
    assert pixel(save(Image.new("L", (2, 3), 77), tmp_path / "grey.png")) == (77, 77, 77)
    assert pixel(save(Image.new("1", (2, 3), 1), tmp_path / "bit.png")) == (255, 255, 255)
    assert pixel(save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "cmyk.tif")) == (255, 0, 0)


def test_a_palette_gives_its_colours_not_its_indices(tmp_path: Path) -> None:
    image = Image.fromarray(np.uint8([[0, 1]])).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    path = save(image, tmp_path / "palette.png")
    assert (pixel(path, 0), pixel(path, 1)) == ((10, 20, 30), (200, 100, 50))
    path = save(image, tmp_path / "transparent.png", transparency=1)
    assert (pixel(path, 0), pixel(path, 1)) == ((10, 20, 30), (128, 128, 128))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_become_mid_grey_whatever_lies_beneath(tmp_path: Path, mode: str) -> None:
    values = {"RGBA": [(9, 8, 7, 255), (250, 1, 1, 0), (0, 0, 0, 128)], "LA": [(9, 255), (250, 0), (0, 128)]}[mode]
    image = Image.new(mode, (3, 1))
    image.putdata(values)
    path = save(image, tmp_path / "alpha.png")
    assert pixel(path, 0) == ((9, 8, 7) if mode == "RGBA" else (9, 9, 9))
    assert pixel(path, 1) == (128, 128, 128)
    assert all(abs(value - 64) <= 1 for value in pixel(path, 2))


def test_sixteen_bits_are_scaled_by_their_range_never_clipped_nor_wrapped(tmp_path: Path) -> None:
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    for name in ("ramp.png", "ramp.tif"):
        decoded = np.asarray(decode_image(save(Image.fromarray(ramp), tmp_path / name)))
        np.testing.assert_array_equal(decoded[..., 0], np.rint(ramp / 257))
        np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])
    # A dark image stays dark: the range is the format's, not the image's.
    assert pixel(save(Image.fromarray(np.full((4, 4), 257, np.uint16)), tmp_path / "dark.png")) == (1, 1, 1)


def test_32_bit_integers_are_read_as_16_bit_or_refused(tmp_path: Path) -> None:
    assert pixel(save(Image.fromarray(np.int32([[65535]])), tmp_path / "fits.tif")) == (255, 255, 255)
    path = save(Image.fromarray(np.int32([[0, 70000]])), tmp_path / "wide.tif")
    with pytest.raises(DataError, match="expected grey values of 0 to 65535, but they run from 0 to 70000"):
        decode_image(path)


def test_float_grey_is_read_in_the_unit_range_or_refused(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.float32([[0.0, 0.5, 1.0]])), tmp_path / "unit.tif")
    assert [pixel(path, x)[0] for x in range(3)] == [0, 128, 255]
    for name, values in (("nan", [0.0, np.nan]), ("far", [0.0, 255.0]), ("negative", [-0.5, 1.0])):
        path = save(Image.fromarray(np.float32([values])), tmp_path / f"{name}.tif")
        with pytest.raises(DataError, match=rf"{name}.tif: expected float grey values in \[0, 1\]"):
            decode_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    """The corner that the orientation brings to the top left is the only bright one."""
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


def test_broken_exif_data_do_not_spoil_a_whole_image(tmp_path: Path) -> None:
    path = save(Image.new("RGB", (8, 8), (255, 0, 0)), tmp_path / "odd.jpg", exif=b"Exif\x00\x00no such thing")
    assert pixel(path)[0] > 200
    assert oriented_size(path) == (8, 8)


def test_resizing_is_antialiased_and_not_resizing_is_exact(tmp_path: Path) -> None:
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
    with pytest.raises(ConfigError, match="image_size: expected a side of at least 1 pixel, but got 0"):
        load_image(path, 0)


# --- masks


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16])
@pytest.mark.parametrize("value", [1, 3, 255])
def test_a_mask_counts_every_pixel_that_is_not_black(tmp_path: Path, dtype: type, value: int) -> None:
    truth = RNG.random((12, 12)) < 0.3
    path = save(Image.fromarray(truth if dtype is np.bool_ else (truth * value).astype(dtype)), tmp_path / "mask.png")
    mask = load_mask(path, 12)
    assert mask.dtype == torch.bool
    np.testing.assert_array_equal(mask.numpy(), truth)


def test_masks_in_colour_with_alpha_and_in_jpeg(tmp_path: Path) -> None:
    truth = np.zeros((32, 32), bool)
    truth[8:24, 8:24] = True
    red = np.zeros((32, 32, 3), np.uint8)
    red[truth] = (200, 0, 0)
    assert torch.equal(load_mask(save(Image.fromarray(red), tmp_path / "red.png"), 32), torch.from_numpy(truth))
    # White everywhere, transparent outside: what cannot be seen is not marked.
    layer = np.full((32, 32, 4), 255, np.uint8)
    layer[~truth, 3] = 0
    assert torch.equal(load_mask(save(Image.fromarray(layer), tmp_path / "layer.png"), 32), torch.from_numpy(truth))
    # Off JPEG's grid of 8 x 8 blocks, black is not quite black.
    moved = np.roll(truth, (3, 3), (0, 1))
    jpeg = save(Image.fromarray((moved * 255).astype(np.uint8)), tmp_path / "mask.jpg", quality=50)
    assert len(np.unique(np.asarray(Image.open(jpeg)))) > 2
    assert torch.equal(load_mask(jpeg, 32), torch.from_numpy(moved))


@pytest.mark.parametrize(
    ("palette", "expected"),
    [
        ([0, 0, 0] * 3, [[False, True], [True, False]]),  # class numbers that nobody gave colours
        ([0, 0, 0, 128, 0, 0, 0, 128, 0], [[False, True], [True, False]]),
        ([255, 255, 255, 0, 0, 0, 9, 9, 9], [[True, False], [True, True]]),  # class 0 is the white one
    ],
)
def test_a_mask_with_a_palette(tmp_path: Path, palette: list[int], expected: list[list[bool]]) -> None:
    image = Image.fromarray(np.uint8([[0, 1], [2, 0]])).convert("P")
    image.putdata([0, 1, 2, 0])
    image.putpalette(palette)
    assert decode_mask(save(image, tmp_path / "classes.png")).tolist() == expected


def test_masks_are_resized_by_nearest_neighbour(tmp_path: Path) -> None:
    truth = np.zeros((64, 64), np.uint8)
    truth[:, 32:] = 255
    path = save(Image.fromarray(truth), tmp_path / "half.png")
    np.testing.assert_array_equal(load_mask(path, 16).numpy()[0], [False] * 8 + [True] * 8)
    noise = RNG.random((64, 64)) < 0.5
    path = save(Image.fromarray((noise * 255).astype(np.uint8)), tmp_path / "noise.png")
    np.testing.assert_array_equal(load_mask(path, 16).numpy(), noise[2::4, 2::4])
    path = save(Image.fromarray(truth), tmp_path / "half.png")
    np.testing.assert_array_equal(load_mask(path, 128).numpy()[0], [False] * 64 + [True] * 64)


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    path = save(Image.new("L", (20, 10)), tmp_path / "mask.png")
    assert load_mask(path, 8, (20, 10)).shape == (8, 8)
    with pytest.raises(DataError, match=r"mask.png: expected .* 10 x 20 pixels, but it has 20 x 10; make the mask"):
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
    assert message.startswith(f"{path}: expected ")
    assert message.endswith(".")
    assert "; " in message  # what to do
    assert caught.value.__suppress_context__
    return message


@pytest.mark.filterwarnings("ignore:Truncated File Read")  # Pillow's, beside the error
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "gif", "webp"])
@pytest.mark.parametrize("keep", [0.9, 0.5, 0.1, 0.01])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"cut.{suffix}"
    data = encoded(suffix)
    path.write_bytes(data[: int(len(data) * keep)])
    for read in (lambda: load_image(path, 8), lambda: load_mask(path, 8)):
        message = one_line(read, path)
        assert message.count(str(path)) == 1


def test_flipped_bytes_are_read_or_named_but_nothing_else(tmp_path: Path) -> None:
    """Whatever a plugin stumbles on, only DataError comes out."""
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
    assert all(message.startswith(f"{path}: ") for message in messages)


def test_other_wrong_files(tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("no image at all")
    assert "cannot identify" in one_line(lambda: decode_image(text), text)
    empty = tmp_path / "empty.png"
    empty.touch()
    assert "the file is empty" in one_line(lambda: decode_image(empty), empty)
    assert "the file is empty" in one_line(lambda: oriented_size(empty), empty)
    missing = tmp_path / "missing.png"
    assert "there is none" in one_line(lambda: decode_image(missing), missing)
    assert "it is a folder" in one_line(lambda: decode_image(tmp_path), tmp_path)


def test_an_image_too_large_for_pillow_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Image.new("L", (100, 100)), tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "expected at most 2000 pixels" in one_line(lambda: decode_image(path), path)
