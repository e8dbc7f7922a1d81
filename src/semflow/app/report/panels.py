"""Galleries: images, ground truths and heat maps side by side in one picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from semflow.errors import ConfigError

from .colors import heat_colors

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

BACKGROUND, TEXT, FAINT = (255, 255, 255), (28, 28, 32), (120, 120, 128)
GAP, CAPTION, HEADER, LEGEND = 6, 20, 44, 96


@dataclass(frozen=True)
class Panel:
    """One image of a gallery.

    Args:
        image: Picture of the detector's input.
        heat: Its overlay, the result of `overlay`.
        truth: (H, W) bool, true where anomalous; None if unknown.
        caption: Text above the pictures, such as "brick, scratch".
        score: Anomaly score of the image.

    Example:
        >>> Panel(Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8)), None, "brick, crack", 2.1).score
        2.1
    """

    image: Image.Image
    heat: Image.Image
    truth: NDArray[np.bool_] | None
    caption: str
    score: float


def gallery(
    panels: Sequence[Panel],
    *,
    title: str = "",
    columns: int = 1,
    tile: int = 128,
    value_range: tuple[float, float] | None = None,
) -> Image.Image:
    """Draw all panels in one picture: image, ground truth and heat map under a caption with the score.

    Args:
        panels: In row-major order.
        title: Line at the top.
        columns: Panels per row.
        tile: Side of each of the three pictures in pixels.
        value_range: Values of the first and the last color, for a legend; None draws no legend.

    Example:
        >>> image = Image.new("RGB", (64, 64))
        >>> panel = Panel(image, image, np.zeros((64, 64), dtype=bool), "brick, crack", 2.1)
        >>> picture = gallery([panel, panel], columns=2, tile=64)
        >>> picture.mode, picture.width > 6 * 64
        ('RGB', True)
    """
    if not panels:
        raise ConfigError("panels must have at least one panel, but got none")
    columns = min(max(1, columns), len(panels))
    width = 3 * tile + 2 * GAP
    rows = -(-len(panels) // columns)
    size = (columns * (width + 4 * GAP) + 2 * GAP, HEADER + rows * (CAPTION + tile + 2 * GAP) + 2 * GAP)
    canvas = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((3 * GAP, 2 * GAP), title, fill=TEXT, font=ImageFont.load_default(16))
    if value_range is not None:
        _draw_legend(canvas, draw, value_range)
    for index, panel in enumerate(panels):
        left = 3 * GAP + (index % columns) * (width + 4 * GAP)
        top = HEADER + (index // columns) * (CAPTION + tile + 2 * GAP)
        _draw_panel(canvas, draw, panel, left, top, tile)
    return canvas


def _draw_panel(canvas: Image.Image, draw: ImageDraw.ImageDraw, panel: Panel, left: int, top: int, tile: int) -> None:
    font = ImageFont.load_default(12)
    score = f"score {panel.score:.3f}"
    score_left = left + 3 * tile + 2 * GAP - int(draw.textlength(score, font=font))
    draw.text((score_left, top + 3), score, fill=TEXT, font=font)
    caption = _shorten(draw, panel.caption, score_left - left - 2 * GAP, font)
    draw.text((left, top + 3), caption, fill=TEXT, font=font)
    truth = None if panel.truth is None else Image.fromarray(np.where(panel.truth, 255, 0).astype(np.uint8))
    for column, picture in enumerate((panel.image, truth, panel.heat)):
        corner = (left + column * (tile + GAP), top + CAPTION)
        if picture is None:
            draw.rectangle((*corner, corner[0] + tile - 1, corner[1] + tile - 1), outline=FAINT)
            draw.text((corner[0] + GAP, corner[1] + GAP), "no mask", fill=FAINT, font=font)
        else:
            canvas.paste(picture.convert("RGB").resize((tile, tile), Image.Resampling.BILINEAR), corner)


def _draw_legend(canvas: Image.Image, draw: ImageDraw.ImageDraw, value_range: tuple[float, float]) -> None:
    font, top = ImageFont.load_default(12), 2 * GAP + 2
    low, high = (f"{value:.3g}" for value in value_range)
    right = canvas.width - 3 * GAP - int(draw.textlength(high, font=font))
    bar = heat_colors(np.tile(np.linspace(0.0, 1.0, LEGEND, dtype=np.float32), (12, 1)))
    draw.text((right, top), high, fill=FAINT, font=font)
    canvas.paste(Image.fromarray(bar), (right - GAP - LEGEND, top + 1))
    draw.text((right - 2 * GAP - LEGEND - int(draw.textlength(low, font=font)), top), low, fill=FAINT, font=font)


def _shorten(draw: ImageDraw.ImageDraw, text: str, width: int, font: Font) -> str:
    """Drop the start of a long text: names mostly differ at the end."""
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength("..." + text, font=font) > width:
        text = text[1:]
    return "..." + text
