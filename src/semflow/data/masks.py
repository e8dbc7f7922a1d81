"""Mask files decoded to true where anomalous, judged by their content and codec."""

import warnings
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor

from semflow._validation import Size, checked
from semflow.errors import DataError

from .decoding import Doubt, to_8_bit
from .reading import WIDE_MODES, opened, read_header, upright, wide_values
from .resizing import Resize, check_image_size, resize_mask

_LOSSY = frozenset({"JPEG", "MPO", "AVIF", "HEIF"})
_LOSSY_IN_TIFF = frozenset({"jpeg", "tiff_jpeg", "webp"})
_MANY_LEVELS = 8  # more levels without any area of one value come from compression or smoothing
_EDGE = 2  # pixels
_NEARLY_ALL = 0.9


def decode_mask(path: str | PathLike[str], meaning: Literal["anomalous", "inside"] = "anomalous") -> NDArray[np.bool_]:
    """Decode a mask file to a bool array (H, W), true where anomalous.

    Every pixel that is not black or transparent is anomalous, so masks of 0/1, of 0/255 and of class indices give the
    same result. In an image with a palette the colors count, or the indices if no pixel or the whole palette is black.
    If black is not exact, after lossy compression or smoothing, pixels above half of the brightest are anomalous, and
    a warning names the file. A warning also names a mask of anomalies that covers nearly everything or looks inverted;
    the mask of a region, with `meaning="inside"`, may.
    """
    name = fspath(path)
    with opened(path) as image:
        header = read_header(image, name)
        lossy = _is_lossy(path, header.codec)
        turned = upright(image)
        wide = turned.mode in WIDE_MODES
        if wide:  # not converted: 1 of 65535 is a label too and must not round to black
            values = wide_values(turned, header)
            doubts: list[Doubt] = []
        else:
            pixels, doubts = to_8_bit(turned, header, name, background=0)
            values = np.atleast_3d(np.asarray(pixels)).max(axis=2)
            if turned.mode == "P" and (values.min() > 0 or not any(turned.getpalette() or ())):
                values = np.asarray(turned)
    for kind, text in doubts:
        if kind == "transparent":
            warnings.warn(text, stacklevel=1)
    return anomalous_pixels(values, name, lossy=lossy, white=header.largest if wide else 255.0, meaning=meaning)


def anomalous_pixels(
    values: NDArray[Any],
    name: str,
    *,
    lossy: bool = False,
    white: float = 255.0,
    meaning: Literal["anomalous", "inside"] = "anomalous",
) -> NDArray[np.bool_]:
    """Return where the values of a mask are anomalous; warn if they leave a doubt. See `decode_mask`."""
    if not np.isfinite(values).all():
        raise DataError(f"{name} must have finite values, but got NaN or infinity; create the mask again")
    top, low = float(values.max()), float(values.min())
    found: NDArray[np.bool_] = np.asarray(values > 0)
    if lossy and top < white / 4:  # black with noise
        return np.zeros_like(found)
    reason = _inexact(values, top, low, lossy)
    if reason:
        found = np.asarray(values > top / 2)
        warnings.warn(
            f"{name} {reason}, so its pixels above {top / 2:g} count as {meaning}; save masks as PNG with two levels",
            stacklevel=1,
        )
    if meaning == "inside":
        return found
    share = float(found.mean())
    border = all(edge.all() for edge in (found[0], found[-1], found[:, 0], found[:, -1]))
    if share > _NEARLY_ALL or (share > 0.5 and border):
        warnings.warn(
            f"{name} marks {share:.0%} of the image as anomalous; check that normal pixels are black and that the mask "
            "is not inverted",
            stacklevel=1,
        )
    return found


@checked
def load_mask(
    path: str | PathLike[str], size: Size, image_size: tuple[int, int] | None = None, resize: Resize = "stretch"
) -> Tensor:
    """Load a mask file as a bool tensor (H, W), true where anomalous, resized by nearest neighbor.

    Published pixel metrics depend on nearest-neighbor resizing: keeping every anomalous pixel while shrinking would
    enlarge the regions. The mask must have the `image_size` (width, height) of its image, unless that is None.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mask = Image.new("L", (40, 30))
        ...     mask.paste(255, (0, 0, 20, 30))
        ...     mask.save(f"{folder}/a_mask.png")
        ...     load_mask(f"{folder}/a_mask.png", 4, image_size=(40, 30))[0]
        tensor([ True,  True, False, False])
    """
    check_image_size(size=size)
    mask = decode_mask(path)
    if image_size is not None:
        check_mask_size(path, (mask.shape[1], mask.shape[0]), image_size)
    return torch.from_numpy(resize_mask(mask, size, resize))


def check_mask_size(path: str | PathLike[str], size: tuple[int, int], image_size: tuple[int, int]) -> None:
    """Raise DataError if the (width, height) of a mask differs from that of its image."""
    if size != image_size:
        raise DataError(
            f"{fspath(path)} must have the size of its image, {image_size[0]} x {image_size[1]} pixels, "
            f"but got {size[0]} x {size[1]}; create the mask again from the original image"
        )


def _inexact(values: NDArray[Any], top: float, low: float, lossy: bool) -> str | None:
    """Return why a mask is not exact, so that half of its brightest value is the threshold, or None."""
    between = np.asarray((values > 0) & (values < top))
    if not between.any():
        return None
    if 0 < low < top / 4:
        return "has no black pixel"
    levels = np.unique(values[between])
    flat = scipy.ndimage.maximum_filter(values, 3) == scipy.ndimage.minimum_filter(values, 3)
    loose = len(levels) - len(np.intersect1d(levels, values[flat & between]))
    if lossy or loose > _MANY_LEVELS:
        return f"has gray levels ({len(levels)}), as lossy compression or smoothing leaves"
    strong = values > 0.75 * top
    weak = between & ~strong
    if not weak.any() or (top < 32 and values.dtype.kind != "f"):  # smaller numbers are class indices
        return None
    if len(levels) == 1 and not (flat & strong).any():  # a class beside thin lines
        return None
    if float(values[weak].max()) <= top / 8 and 2 * np.count_nonzero(flat & weak) < np.count_nonzero(weak):
        return "has specks that are nearly black"
    near = scipy.ndimage.binary_dilation(strong, np.ones((3, 3)), iterations=_EDGE)
    return None if (weak & ~near).any() else "has gray edges"


def _is_lossy(path: str | PathLike[str], codec: str) -> bool:
    """Return True if the codec of an image file does not keep exact values."""
    format, _, compression = codec.partition(" ")
    if format == "WEBP":
        return b"VP8L" not in _start(path)
    if format == "JPEG2000":  # the last byte of the coding style names the wavelet: 1 is reversible
        start = _start(path)
        place = start.find(b"\xff\x52", max(start.find(b"\xff\x4f\xff\x51"), 0))
        return place < 0 or start[place + 13 : place + 14] != b"\1"
    return format in _LOSSY or (format == "TIFF" and compression in _LOSSY_IN_TIFF)


def _start(path: str | PathLike[str]) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(2**16)
