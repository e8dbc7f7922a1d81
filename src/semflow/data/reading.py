"""Image files opened with Pillow, and what their headers say that Pillow's modes do not."""

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin

from semflow.errors import DataError

from .endings import formats_of

WIDE_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})  # Pillow's conversion would clip them at 255
_ORIENTATION = 0x0112  # the EXIF tag; values from 5 on exchange width and height
_SUBFILE, _BITS, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT, _SUBSAMPLING = 254, 258, 262, 284, 339, 530  # tags of TIFF
_PAGED = frozenset({"AVIF", "GIF", "HEIF", "PNG", "TIFF", "WEBP"})


class Header(NamedTuple):
    """What the header of an image file says, before its pixels are decoded.

    Attributes:
        largest: The value of white in a mode of `WIDE_MODES`.
        inverted: Pillow does not invert the values although 0 is white.
        sixteen: The samples have 16 bits, also where Pillow keeps only 8.
        paged: More pages or frames follow.
        codec: Format and compression.
    """

    largest: float
    inverted: bool
    sixteen: bool
    paged: bool
    codec: str


@contextmanager
def opened(path: str | PathLike[str], file: IO[bytes] | None = None) -> Iterator[Image.Image]:
    """Open an image and convert every error during reading to a DataError."""
    formats: tuple[str, ...] = ()
    try:
        if file is None:
            mode = Path(path).stat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # reading from a pipe could wait forever
                raise DataError(f"{path} must be an image file, but got a pipe, a socket or a device; move it")
        formats = formats_of(path)
        with Image.open(path if file is None else file, formats=formats) as image:
            yield image
    except DataError:
        raise
    except Exception as error:  # Pillow's plugins raise errors of any class
        expected, found, advice = _diagnosis(Path(path), error, formats)
        raise DataError(f"{fspath(path)} must {expected}, but got {found}; {advice}") from None


def read_header(image: Image.Image, name: str) -> Header:
    """Read the header of an opened image; raise DataError for a TIFF whose pixels Pillow would get wrong."""
    tile = getattr(image, "tile", None)
    raw = str(tile[0][3]) if tile else ""
    codec = f"{image.format} {image.info.get('compression', '')}"
    largest, inverted = 1.0 if image.mode == "F" else 65535.0, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if problem := _misread(image):
            raise DataError(
                f"{name} must be a TIFF that Pillow decodes correctly, but got {problem}; save it as PNG, or as TIFF "
                "of 8 or 16 bits with interleaved channels"
            )
        bits, signed = image.tag_v2.get(_BITS, (1,)), image.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] == 2
        inverted = image.mode in WIDE_MODES and image.tag_v2[_PHOTOMETRIC] == 0
        largest = {12: 4095.0, 16: 32767.0 if signed else 65535.0}.get(bits[0], largest)
    return Header(largest, inverted, ";16" in raw, _has_more_pages(image), codec)


def has_more_pages(path: str | PathLike[str]) -> bool:
    """Return True if pages or frames follow the one that is read, from the header alone; False if it is broken."""
    try:
        with opened(path) as image:
            return _has_more_pages(image)
    except DataError:
        return False


def upright(image: Image.Image) -> Image.Image:
    """Decode the pixels and apply the EXIF orientation; an image that has none is not copied."""
    image.load()
    try:
        return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image
    except Exception:  # the EXIF data are broken, but the pixels are intact
        return image


def oriented_size(path: str | PathLike[str]) -> tuple[int, int]:
    """Return the width and height of an image file after EXIF orientation, from its header alone."""
    with opened(path) as image:
        width, height = image.size
        # Reading the EXIF data of a PNG without any would decode the whole file; a TIFF's size is upright already.
        turned = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        return (height, width) if turned else (width, height)


def decoded_size(path: str | PathLike[str]) -> tuple[int, int]:
    """Return the width and height of an image file after decoding, for orientations that the header lacks."""
    with opened(path) as image:
        return upright(image).size


def wide_values(image: Image.Image, header: Header) -> NDArray[Any]:
    """Return the values of an image in one of `WIDE_MODES`, in which 0 is black."""
    values = np.asarray(image)
    return values.dtype.type(header.largest) - values if header.inverted else values


def _misread(image: TiffImagePlugin.TiffImageFile) -> str | None:
    """Return what Pillow decodes to wrong pixels, or None."""
    tags, decoder = image.tag_v2, image.tile[0][0] if image.tile else "raw"
    bits, signed = tags.get(_BITS, (1,)), 2 in tags.get(_SAMPLE_FORMAT, (1,))
    photometric, planar = tags.get(_PHOTOMETRIC), tags.get(_PLANAR, 1) == 2
    swapped = tags.prefix == (b"MM" if sys.byteorder == "little" else b"II")
    if photometric is None:
        return "no photometric interpretation"
    if planar and (
        image.mode in ("LA", "La", "PA") or (decoder == "raw" and (set(bits) != {8} or photometric in (0, 6, 8)))
    ):
        return f"separate planes of {max(bits)} bits"
    if signed and 8 in bits:
        return "signed values of 8 bits"
    if photometric == 6 and decoder == "raw" and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1):
        return "subsampled colors without compression"
    if decoder == "libtiff" and swapped and (32 in bits or signed):
        return f"compressed values of {max(bits)} bits in the other byte order"
    return None


def _has_more_pages(image: Image.Image) -> bool:
    if image.format not in _PAGED or not getattr(image, "is_animated", False):
        return False
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return True
    first = image.size
    try:
        for page in range(1, image.n_frames):
            image.seek(page)
            if not image.tag_v2.get(_SUBFILE, 0) & 1 and not _is_smaller_copy(image.size, first):
                return True
    except Exception:  # a later page is broken, but the first one is read
        return False
    finally:
        image.seek(0)
    return False


def _is_smaller_copy(size: tuple[int, int], first: tuple[int, int]) -> bool:
    """Return whether a page is clearly smaller than the first one and has its proportions up to rounding."""
    (width, height), (w, h) = first, size
    return 4 * max(w / width, h / height) <= 3 and abs(w * height - h * width) <= width + height


def _diagnosis(path: Path, error: Exception, formats: tuple[str, ...]) -> tuple[str, str, str]:
    """Return what was expected, what was found, and what to do."""
    match error:
        case FileNotFoundError() if path.is_symlink():
            return "be an image file", "a broken link", "repair or delete it"
        case FileNotFoundError():
            return "be an image file", "no such file", "check the path"
        case IsADirectoryError():
            return "be an image file", "a folder", "name a file in it"
        case PermissionError():
            return "be a readable image file", "no permission to read it", "change its permissions"
        case Image.DecompressionBombError():
            return f"have at most {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels", "more", "cut it into tiles"
        case OSError(strerror=str(reason)):  # from the system: a loop of links, a name too long, a failing disk
            return "be a readable image file", f"the error {reason!r}", "repair, replace or delete it"
    if os.path.exists(path) and path.stat().st_size == 0:  # noqa: PTH110 - returns False for a name too long
        return "be an image file", "an empty file", "replace or delete it"
    # Pillow's message without the file name, which the error starts with.
    reason = " ".join(str(error).split()).replace(f" {str(path)!r}", "") or type(error).__name__
    return f"be an intact image ({' '.join(formats)})", f"the error {reason!r}", "replace or delete it"
