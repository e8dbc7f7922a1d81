"""Regions of interest: masks of the pixels that count."""

from collections import defaultdict
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semflow._validation import Size, checked
from semflow.errors import DataError

from .masks import decode_mask
from .resizing import Resize, check_image_size, resize_mask
from .walking import find_images


@checked
def load_region(path: str | PathLike[str], size: Size, resize: Resize = "stretch") -> Tensor:
    """Load a mask file as a region of interest: a bool tensor (H, W), true where the mask is not black.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mask = Image.new("L", (40, 20))
        ...     mask.paste(255, (0, 0, 20, 20))
        ...     mask.save(f"{folder}/belt.png")
        ...     load_region(f"{folder}/belt.png", 4)[0], load_region(f"{folder}/belt.png", 4, "pad")[0]
        (tensor([ True,  True, False, False]), tensor([False, False, False, False]))
    """
    check_image_size(size=size)
    return torch.from_numpy(read_region(path, None, size, resize).copy())


def read_region(
    path: str | PathLike[str], picture: tuple[int, int] | None, size: Size, resize: Resize
) -> NDArray[np.bool_]:
    """Decode a region for an image of (width, height), if known, and resize it."""
    mask = decode_mask(path, meaning="inside")
    if picture is not None:
        check_proportions(path, (mask.shape[1], mask.shape[0]), picture)
    inside = resize_mask(mask, size, resize)
    if not inside.any():
        raise DataError(
            f"{fspath(path)} must mark the region of interest, but got {'no' if mask.any() else 'only black'} pixels "
            f"{'at the size of the images' if mask.any() else 'or transparent ones'}; make the region white"
        )
    return inside


def check_proportions(path: str | PathLike[str], mask: tuple[int, int], picture: tuple[int, int]) -> None:
    """Raise DataError unless a mask of (width, height) is a picture's, whose size it may have been reduced from."""
    (width, height), (a, b) = mask, picture
    if abs(width - height * a / b) > 1 and abs(height - width * b / a) > 1:
        raise DataError(
            f"{fspath(path)} must have the proportions of its images, {a} x {b} pixels, but got {width} x {height}; "
            "create the mask again from an original image"
        )


def matched_regions(images: Sequence[Path], regions: Path) -> dict[Path, Path]:
    """Return the mask of the region of each image: one file for all, or the one of its name in a folder.

    In the folder, the mask of PATH/a/b.png is the first of PATH/a/b_mask.png, PATH/a/b.png, and so on without leading
    folders up to b_mask.png and b.png, of any image format.
    """
    if regions.is_file():
        return dict.fromkeys(images, regions)
    if not regions.is_dir():
        raise DataError(f"{regions} must be a mask or a folder of masks, but got no such path; check the path")
    masks: defaultdict[Path, list[Path]] = defaultdict(list)
    for path in find_images(regions):
        masks[path.relative_to(regions).with_suffix("")].append(path)
    owners: dict[Path, Path] = {}
    chosen: dict[Path, Path] = {}
    for image in images:
        parts = image.with_suffix("").parts[bool(image.anchor) :]
        ends = [Path(*parts[k:]) for k in range(len(parts))]
        names = [key for end in ends for key in (end.with_name(f"{end.name}_mask"), end)]
        found = next((masks[key] for key in names if key in masks), [])
        if not found:
            raise DataError(f"{image} must have a region {regions / ends[-1]}.png, but got none; add the mask")
        if len(found) > 1:
            raise DataError(f"{image} must have one region, but got {found[0]} and {found[1]}; remove one")
        if (other := owners.setdefault(found[0], image)) != image:
            raise DataError(f"{found[0]} must be the region of one image, but got {other} and {image}; use subfolders")
        chosen[image] = found[0]
    return chosen
