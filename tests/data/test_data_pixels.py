"""Pixels are right, refused, or warned of: TIFF headers that Pillow's modes hide, transparency, few bits, pages."""

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from semflow.data import ImageFolder, decode_image
from semflow.data.masks import decode_mask
from semflow.data.reading import has_more_pages
from semflow.errors import DataError

# Values from 0 to 1 that rise in one half and fall in the other, and three channels of them.
RAMP = np.tile(np.linspace(0, 1, 64), (32, 1))
RAMP[16:] = RAMP[16:, ::-1]
COLORS = np.dstack([RAMP, RAMP[:, ::-1], np.roll(RAMP, 16, 1)])

DTYPES = ("uint8", "int8", "uint16", "int16", "int32", "uint32", "float16", "float32", "float64")

Writer = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    tifffile = pytest.importorskip("tifffile")

    def make(values: NDArray[Any], dtype: str, **options: object) -> Path:
        kind = np.dtype(dtype)
        scaled = values.astype(kind) if kind.kind == "f" else np.round(values * np.iinfo(kind).max).astype(kind)
        path: Path = tmp_path / "a.tif"
        tifffile.imwrite(path, scaled, metadata=None, **options)
        return path

    return make


def error_of(path: Path, truth: NDArray[Any]) -> float:
    """Return the largest error of the decoded levels."""
    decoded = np.asarray(decode_image(path)).astype(float)
    return float(np.abs(decoded - 255 * (truth if truth.ndim == 3 else truth[..., None])).max())


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tiff_is_right_or_refused(
    write: Writer, order: str, compression: str | None, tile: tuple[int, int] | None, dtype: str
) -> None:
    """Of every combination; those of 8 and 16 bits without sign that people use must be right."""
    storage = {"byteorder": order, "compression": compression, "tile": tile}
    planes, alpha = np.moveaxis(COLORS, 2, 0), np.dstack([COLORS, np.ones_like(RAMP)])
    opaque = np.dstack([RAMP, np.ones_like(RAMP)])
    cases: list[tuple[NDArray[Any], NDArray[Any], dict[str, object]]] = [
        (RAMP, RAMP, {"photometric": "minisblack"}),
        (1 - RAMP, RAMP, {"photometric": "miniswhite"}),
        (COLORS, COLORS, {"photometric": "rgb", "planarconfig": "contig"}),
        (planes, COLORS, {"photometric": "rgb", "planarconfig": "separate"}),
        (alpha, COLORS, {"photometric": "rgb", "planarconfig": "contig", "extrasamples": [2]}),
        (np.moveaxis(alpha, 2, 0), COLORS, {"photometric": "rgb", "planarconfig": "separate", "extrasamples": [2]}),
        (opaque, RAMP, {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": [2]}),
        (
            np.moveaxis(opaque, 2, 0),
            RAMP,
            {"photometric": "minisblack", "planarconfig": "separate", "extrasamples": [2]},
        ),
    ]
    refused = []
    for index, (values, truth, layout) in enumerate(cases):
        path = write(np.ascontiguousarray(values), dtype, **storage, **layout)
        try:
            assert error_of(path, truth) <= 1, layout
        except DataError:
            refused.append(index)
    if dtype == "uint8":
        assert not set(refused) & {0, 1, 2, 3, 4, 6}
    if dtype == "uint16":
        assert not set(refused) & {0, 2, 4}
        assert (1 in refused) == (order == ">")  # Pillow lacks this one
        assert (3 in refused) == (compression is None)
    if dtype in ("int16", "float32") and (order, compression) != (">", "zlib"):
        assert 0 not in refused


def test_refused_tiff_says_what_to_do(write: Writer) -> None:
    path = write(np.moveaxis(COLORS, 2, 0).copy(), "uint16", photometric="rgb", planarconfig="separate")
    with pytest.raises(DataError, match="got separate planes of 16 bits; save it as PNG, or as TIFF of 8 or 16 bits"):
        decode_image(path)


def test_compressed_float_tiff_in_the_other_byte_order_is_refused(write: Writer) -> None:
    """Pillow does not swap the bytes, and half of the brightness would be black."""
    path = write(np.full((16, 16), 0.5), "float32", byteorder=">", compression="zlib")
    with pytest.raises(DataError, match="32 bits in the other byte order"):
        decode_image(path)


def test_packed_12_bit_tiff_uses_the_whole_range(tmp_path: Path) -> None:
    values = np.array([[0, 1365, 2730, 4095]] * 4)
    packed = b"".join(struct.pack(">I", (a << 12 | b) << 8)[:3] for a, b in values.reshape(-1, 2).tolist())
    tags = {256: 4, 257: 4, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed
    path = tmp_path / "a.tif"
    path.write_bytes(content + struct.pack("<H", len(tags)) + entries + bytes(4))
    assert np.asarray(decode_image(path))[0, :, 0].tolist() == [0, 85, 170, 255]


def test_mask_whose_zero_is_white_is_inverted(write: Writer) -> None:
    truth = RAMP > 0.7
    path = write(1.0 - truth, "uint16", photometric="miniswhite")
    np.testing.assert_array_equal(decode_mask(path), truth)


# --- transparency


@pytest.mark.parametrize("ending", ["png", "tif", "webp", "tga"])
def test_transparency_of_every_pixel_is_ignored_with_a_warning(tmp_path: Path, ending: str) -> None:
    colors = (255 * COLORS).astype(np.uint8)
    for name, alpha in (("none", 0), ("little", 1)):
        path = tmp_path / f"{name}.{ending}"
        options = {"lossless": True, "exact": True} if ending == "webp" else {}
        Image.fromarray(np.dstack([colors, np.full(RAMP.shape, alpha, np.uint8)])).save(path, **options)
        with pytest.warns(UserWarning, match=rf"{name}\.{ending} has no visible pixel, .*; save it without"):
            np.testing.assert_array_equal(np.asarray(decode_image(path)), colors)


def test_palette_without_a_visible_color_keeps_its_colors(tmp_path: Path) -> None:
    image = Image.fromarray(np.uint8([[0, 1]] * 2)).convert("P")
    image.putdata([0, 1, 0, 1])
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / "a.png", transparency=bytes(2))
    with pytest.warns(UserWarning, match="no visible pixel"):
        assert decode_image(tmp_path / "a.png").getpixel((1, 0)) == (200, 100, 50)


def test_image_without_anything_visible_is_refused_and_a_mask_is_empty(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 255, 255, 0)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png must have visible pixels, but got none; save it without"):
        decode_image(tmp_path / "a.png")
    assert not decode_mask(tmp_path / "a.png").any()


def test_few_visible_pixels_are_a_warning(tmp_path: Path) -> None:
    pixels = np.dstack([(255 * COLORS).astype(np.uint8), np.zeros(RAMP.shape, np.uint8)])
    pixels[0, 0, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match=r"a\.png is transparent in 99\.95% of its pixels"):
        decode_image(tmp_path / "a.png")


# --- bits


def png16(path: Path, values: NDArray[Any]) -> Path:
    """Write an RGB PNG of 16 bits, which Pillow cannot."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, _ = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_few_bits_in_16_are_a_warning(tmp_path: Path, bits: int) -> None:
    values = np.round(RAMP * (2**bits - 1)).astype(np.uint16)
    files = []
    for name in ("gray.png", "gray.tif", "gray.jp2"):
        Image.fromarray(values).save(tmp_path / name)
        files.append(tmp_path / name)
    files.append(png16(tmp_path / "colors.png", np.dstack([values] * 3)))
    for path in files:
        expected = (
            rf"{path.name} has 16-bit values of at most {2**bits - 1}, .* multiply the values by {2 ** (16 - bits)}"
        )
        with pytest.warns(UserWarning, match=expected):
            decode_image(path)


def test_pnm_names_its_largest_value(tmp_path: Path) -> None:
    values = np.round(RAMP * 4095).astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 64 32 4095\n" + values.tobytes())
    assert error_of(tmp_path / "a.pgm", RAMP) <= 1


def test_whole_range_and_black_are_no_warning(tmp_path: Path) -> None:
    Image.fromarray(np.round(RAMP * 65535).astype(np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "b.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert error_of(tmp_path / "a.png", RAMP) <= 1
        decode_image(tmp_path / "b.png")


# --- pages


def test_further_pages_are_a_warning_and_previews_are_none(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = (255 * RAMP).astype(np.uint8)
    for name, second, kind in (("pages", pixels, 0), ("preview", pixels[::2, ::2], 1), ("small", pixels[::2, ::2], 0)):
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as file:
            file.write(pixels, metadata=None)
            file.write(second, metadata=None, subfiletype=kind)
    with pytest.warns(UserWarning, match=r"pages\.tif holds several images, of which only the first is read"):
        assert error_of(tmp_path / "pages.tif", RAMP) <= 1
    for name in ("preview", "small"):
        assert error_of(tmp_path / f"{name}.tif", RAMP) <= 1


@pytest.mark.parametrize("size", [(40, 64), (60, 40), (90, 90), (63, 63)])
def test_a_page_of_another_size_is_no_preview(tmp_path: Path, size: tuple[int, int]) -> None:
    """The second page is a preview; the third has other proportions, or about the same size."""
    first, *others = (Image.new("L", of, 80) for of in ((64, 64), (21, 21), size))
    first.save(tmp_path / "pages.tif", save_all=True, append_images=others)
    assert has_more_pages(tmp_path / "pages.tif")
    first.save(tmp_path / "preview.tif", save_all=True, append_images=others[:1])
    assert not has_more_pages(tmp_path / "preview.tif")


# --- once


def test_a_data_set_warns_once_about_each_kind(tmp_path: Path) -> None:
    for k in range(3):
        Image.fromarray(np.full((8, 8), 100 + k, np.uint16)).save(tmp_path / f"{k}.png")
    colors = np.dstack([(255 * COLORS).astype(np.uint8), np.zeros(RAMP.shape, np.uint8)])
    for k in range(3):
        Image.fromarray(colors).save(tmp_path / f"t{k}.png")
    dataset = ImageFolder(tmp_path, 8)
    with pytest.warns(UserWarning, match="other images like it are not named") as caught:
        [dataset[k % 6] for k in range(12)]
    texts = [str(item.message) for item in caught]
    assert len(texts) == 2
    assert "0.png has 16-bit values" in texts[0]
    assert texts[0].endswith("; other images like it are not named")
    assert "t0.png has no visible pixel" in texts[1]
