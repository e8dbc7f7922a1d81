"""Comparison of an exported file with its detector on the same images."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semflow._channels import alike, has_region
from semflow._validation import Size, height_and_width
from semflow.errors import ExportError, ShapeError

from .graph import DetectorGraph
from .metadata import InputType
from .runtime import Runner

BATCH, DECISIONS = 8, ("p_value", "is_anomalous", "mask")
RELATIVE = 1e-4
"""Largest difference of a score or map value, relative to the larger of the value and one nat."""


def compare(graph: DetectorGraph, runner: Runner, images: Tensor) -> dict[str, float]:
    """Compute the largest relative difference of each result, for batches of images and for the first alone.

    Args:
        graph: Graph of the detector.
        runner: Runner of the exported file.
        images: (B, C, H, W) with B >= 1, of the graph's input type.

    Raises:
        ExportError: If a difference is larger than `RELATIVE`.

    Example:
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> graph = DetectorGraph(cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32).eval())
        >>> runner = lambda images: dict(zip(graph.outputs, (x.numpy() for x in graph(torch.from_numpy(images)))))
        >>> compare(graph, runner, graph.example())
        {'score': 0.0, 'anomaly_map': 0.0}
    """
    found: dict[str, float] = {}
    for batch in (*images.split(BATCH), images[:1]):
        results = runner(batch.numpy())
        for name, expected in zip(graph.outputs, graph(batch), strict=True):
            if name == "p_value":  # the first decision; a pixel at the threshold may be on either side
                score, anomaly_map = (torch.from_numpy(results[x]) for x in ("score", "anomaly_map"))
                decisions = graph.detector.calibration(score, anomaly_map)._asdict()
            wanted = decisions[name] if name in DECISIONS else expected
            found[name] = max(found.get(name, 0.0), _difference(wanted.numpy(), results[name], name))
    worst = max(found, key=lambda name: found[name])
    if not found[worst] <= RELATIVE:
        raise ExportError(
            f"{worst} of the exported model must differ from the detector's by at most {RELATIVE:g}, but got "
            f"{found[worst]:.2g}; use another format, or disable the check and measure"
        )
    return found


def _difference(expected: NDArray[np.generic], value: NDArray[np.generic], name: str) -> float:
    if value.shape != expected.shape:
        raise ExportError(f"{name} of the exported model must be {expected.shape}, but got {value.shape}")
    a, b = value.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.abs(a - b) / np.maximum(np.abs(b), 1.0)
        difference[(a == -np.inf) & (b == -np.inf)] = 0.0  # outside a region
    return float(np.where(np.isnan(difference), np.inf, difference).max())


def sample_images(size: Size, channels: int = 3, count: int = 4) -> Tensor:
    """Draw textures to compare on, noise at several scales: (count, channels, H, W) uint8, with different regions."""
    generator, (height, width) = torch.Generator().manual_seed(0), height_and_width(size)
    total = torch.zeros(count, 3, height, width)
    for cell in (1, 4, 16):
        noise = torch.rand(count, 3, -(-height // cell), -(-width // cell), generator=generator)
        total += torch.nn.functional.interpolate(noise, size=(height, width), mode="nearest") / 3
    images = (total * 255).round().to(torch.uint8)
    if not has_region(channels):
        return images
    region = torch.full((count, 1, height, width), 255, dtype=torch.uint8)
    for k in range(count):
        region[k, :, height - k * height // (2 * count) :] = 0
    return torch.cat([images, region], 1)


def to_input(images: Tensor | Sequence[Tensor], kind: InputType) -> Tensor:
    """Convert uint8 images, or float ones in [0, 1], to the input type of a graph.

    For `uint8`, float images must have the values k / 255 of 8-bit images.
    """
    given = images if isinstance(images, Tensor) else torch.stack(alike(images))
    if kind == "float32":
        return given.to(torch.float32) / 255.0 if given.dtype == torch.uint8 else given.to(torch.float32)
    if given.dtype == torch.uint8:
        return given
    levels = given.to(torch.float32) * 255.0
    whole = levels.round()
    if given.numel() and not bool(((levels - whole).abs() <= 1e-3).all() & (whole >= 0).all() & (whole <= 255).all()):
        raise ShapeError(
            "images must have the values k / 255 for a model with input uint8, but got others; "
            "export it with input float32"
        )
    return whole.to(torch.uint8)
