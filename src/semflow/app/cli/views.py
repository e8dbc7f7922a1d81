"""Pictures of an image for the page of results: the original, the heat map over it, and the map alone."""

import io
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, interpolate

from semflow.app.report import View, contour, link
from semflow.app.report.colors import PALETTE, to_array, to_levels
from semflow.app.report.pictures import cover
from semflow.files import write_atomic
from semflow.functional import grown

from .console import write_png

LONGEST_SIDE = 1024
FOLDERS: dict[View, tuple[str, str]] = {
    "original": ("originals", ".jpg"), "truth": ("truths", ".jpg"), "overlay": ("overlays", ".png"),
    "map": ("heat", ".png"),
}  # fmt: skip
"""Folder and ending of each kind of picture."""
TRUTH_COLOR = (60, 255, 60)  # unlike any heat color and the outline of the decision


def shown_size(width: int, height: int) -> tuple[int, int]:
    """Return width and height of an image's pictures: the same proportions, at most LONGEST_SIDE pixels long."""
    scale = min(1.0, LONGEST_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def shown_map(anomaly_map: Tensor) -> Tensor:
    """Return an anomaly map at the size of pictures if it is larger, as those of tiles may be; peaks remain.

    Example:
        >>> shown_map(torch.eye(4096)).shape, shown_map(torch.eye(8)).shape
        (torch.Size([1024, 1024]), torch.Size([8, 8]))
    """
    height, width = anomaly_map.shape
    size = shown_size(width, height)[::-1]
    return anomaly_map if size == (height, width) else adaptive_max_pool2d(anomaly_map[None], size)[0]


def view_file(view: View, place: str) -> str:
    """Return the path of a picture relative to the page, for an image whose outputs are at `place`."""
    folder, ending = FOLDERS[view]
    return f"{folder}/{place}{ending}"


def view_links(place: str, views: Iterable[View]) -> dict[View, str]:
    """Return the URL of each picture of an image."""
    return {view: link(PurePosixPath(view_file(view, place))) for view in views}


def save_views(
    folder: Path, place: str, picture: Image.Image, anomaly_map: Tensor, value_range: tuple[float, float]
) -> list[str]:
    """Save the original and the map alone, both small, and return their paths relative to the folder."""
    original, heat = view_file("original", place), view_file("map", place)
    write_jpeg(folder / original, picture)
    anomaly_map = shown_map(anomaly_map)
    levels = Image.fromarray(to_levels(to_array(anomaly_map), value_range))
    levels.putpalette(PALETTE.tobytes())
    write_png(folder / heat, levels)
    return [original, heat]


def save_overlay(
    path: Path, picture: Image.Image, anomaly_map: Tensor, value_range: tuple[float, float], mask: Tensor | None = None
) -> None:
    """Save the heat map, and the outline of the mask, over a picture. Both are stretched to the picture's size."""
    anomaly_map = shown_map(anomaly_map)
    size, inside = (picture.height, picture.width), (anomaly_map > -torch.inf)[None]
    whole = bool(inside.all())
    known = anomaly_map[None] if whole else grown(anomaly_map[None], inside, 2)
    enlarged = interpolate(known[:, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    if not whole:
        shown = interpolate(inside[:, None].float(), size=size, mode="nearest")[0, 0] > 0
        enlarged = torch.where(shown, enlarged, -torch.inf)
    heat = cover(picture, to_levels(enlarged.numpy(), value_range))
    write_png(path, heat if mask is None else contour(heat, mask))


def write_jpeg(path: Path, picture: Image.Image) -> None:
    """Write a photograph atomically."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=90)
    write_atomic(path, buffer.getvalue())
