"""Image files decoded to gray or RGB with Pillow; every problem with a file is a DataError of one line."""

import warnings
from os import PathLike, fspath
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from semflow._validation import Size, checked
from semflow.errors import DataError

from .reading import WIDE_MODES, Header, opened, read_header, upright, wide_values
from .resizing import Resize, check_image_size, resize_image

_VISIBLE = 128  # the least alpha of a pixel that is more visible than its background
_FEW_VISIBLE = 0.01
_FEW_LEVELS = 64  # of 256


class Doubt(NamedTuple):
    """A kind of pixels that may be decoded to others than were meant, and a sentence about one file.

    Example:
        >>> Doubt("depth", "a.png has 16-bit values of at most 4095").kind
        'depth'
    """

    kind: str
    text: str


@checked
def decode_image(path: str | PathLike[str], file: IO[bytes] | None = None) -> Image.Image:
    """Decode an image file to 8-bit RGB, upright (EXIF orientation applied).

    16-bit grayscale is scaled by its full range (65535 becomes 255), never by the image's own maximum, so that
    brightness stays comparable between images; float grayscale must lie in [0, 1]. Transparent pixels are composited
    over mid-gray, because the colors stored under full transparency are arbitrary; if hardly any pixel is visible,
    the transparency is ignored. Of an animation or a multi-page file, the first image is read. A warning names a file
    with several images, few visible pixels, or 16-bit values that use less than a quarter of the range.

    Args:
        path: The file, or the name of `file` in errors.
        file: An open binary file to read instead, such as a member of an archive.

    Raises:
        DataError: If the file does not exist, is not an image, is truncated, has values outside the ranges above or no
            visible pixel, or is a TIFF that Pillow decodes to wrong pixels.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.new("L", (4, 3), 128).save(file, "PNG")
        >>> decode_image("in memory", file).getpixel((0, 0))
        (128, 128, 128)
    """
    image, doubts = decode_doubting(path, file)
    for doubt in doubts:
        warnings.warn(doubt.text, stacklevel=1)
    return in_rgb(image)


def in_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB if it has another mode."""
    return image if image.mode == "RGB" else image.convert("RGB")


def decode_doubting(path: str | PathLike[str], file: IO[bytes] | None = None) -> tuple[Image.Image, list[Doubt]]:
    """Decode as `decode_image` does, but gray files to 8-bit gray, and return what it would warn of."""
    name, doubts = fspath(path), []
    with opened(path, file) as image:
        header = read_header(image, name)
        if header.paged:
            doubts.append(
                Doubt("pages", f"{name} holds several images, of which only the first is read; save each one as a file")
            )
        pixels, more = to_8_bit(upright(image), header, name)
    return pixels, doubts + more


@checked
def load_image(path: str | PathLike[str], size: Size, resize: Resize = "stretch") -> Tensor:
    """Load an image file as a float32 tensor (3, H, W) in [0, 1], resized bilinearly with antialiasing.

    Decoding is that of `decode_image`.

    Args:
        path: The file.
        size: Side in pixels, or (height, width).
        resize: `stretch` changes the proportions of the image. `pad` keeps them: gray is added, and a fourth channel,
            which is 1 in the image and 0 in the gray.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (40, 30), "blue").save(f"{folder}/a.png")
        ...     load_image(f"{folder}/a.png", 16)[:, 0, 0]
        tensor([0., 0., 1.])
    """
    check_image_size(size=size)
    return torch.from_numpy(resize_image(decode_image(path), size, resize)).float().div_(255.0)


def to_8_bit(image: Image.Image, header: Header, name: str, background: int = 128) -> tuple[Image.Image, list[Doubt]]:
    """Convert an image to L if it is gray without transparency, and otherwise to RGB, without clipping.

    `background` is the gray under transparent pixels.
    """
    if image.mode in WIDE_MODES:
        return _to_8_bit_gray(image, header, name)
    doubts: list[Doubt] = []
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        colors = layer.convert("RGB")
        pixels, doubts = _blend(layer, colors, name, background)
    else:
        pixels = colors = image.convert("L" if image.mode in ("1", "L") else "RGB")
    if header.sixteen and image.mode != "CMYK" and (high := int(np.asarray(colors).max())) < _FEW_LEVELS:
        doubts.append(_shallow(name, 256 * high + 255))
    return pixels, doubts


def _blend(layer: Image.Image, colors: Image.Image, name: str, background: int) -> tuple[Image.Image, list[Doubt]]:
    """Composite an RGBA image, unless its colors vary and none is visible."""
    alpha, values = np.asarray(layer)[..., 3], np.asarray(colors)
    visible = float((alpha >= _VISIBLE).mean())
    varied = bool((values != values[0, 0]).any())
    if not visible and varied:
        text = f"{name} has no visible pixel, so its transparency is ignored; save it without"
        return colors, [Doubt("transparent", text)]
    if background and not alpha.any():
        raise DataError(f"{name} must have visible pixels, but got none; save it without transparency")
    below = Image.new("RGBA", layer.size, (background, background, background, 255))
    blended = Image.alpha_composite(below, layer).convert("RGB")
    if visible < _FEW_VISIBLE and varied:
        share = f"{name} is transparent in {1 - visible:.2%} of its pixels, which become gray"
        return blended, [Doubt("hidden", f"{share}; save it without transparency if they matter")]
    return blended, []


def _to_8_bit_gray(image: Image.Image, header: Header, name: str) -> tuple[Image.Image, list[Doubt]]:
    stored, largest = np.asarray(image), header.largest
    low, high = float(stored.min()), float(stored.max())
    if not (low >= 0.0 and high <= largest):  # also catches NaN
        expected = (
            "float grayscale values in [0, 1]" if largest == 1 else f"grayscale values between 0 and {largest:.0f}"
        )
        raise DataError(
            f"{name} must have {expected}, but got values from {low:g} to {high:g}; "
            "rescale them or save the image as 8-bit or 16-bit grayscale"
        )
    shallow = largest > 4095 and 0 < high < largest / 4
    values = wide_values(image, header).astype(np.float64) * (255.0 / largest)
    return Image.fromarray(np.rint(values).astype(np.uint8)), [_shallow(name, high)] if shallow else []


def _shallow(name: str, high: float) -> Doubt:
    bits = int(high).bit_length()
    return Doubt(
        "depth",
        f"{name} has 16-bit values of at most {high:.0f}, which leaves {high / 257 + 1:.0f} of 256 brightness levels; "
        f"if its camera has {bits} bits, multiply the values by {2 ** (16 - bits)} and save it again",
    )
