"""The cost of another precision than float32: changes of scores, maps and decisions."""

from typing import NamedTuple

import torch
from torch import Tensor

from semflow.errors import ExportError

from .check import BATCH
from .graph import DetectorGraph
from .metadata import Precision
from .runtime import Runner

ALONE = 2
LARGEST = 0.1
"""Largest mean difference of scores, in standard deviations of normal scores, at which thresholds still hold."""


class Cost(NamedTuple):
    """Differences between an exported file and its detector.

    Args:
        images: Number of images.
        score_mean: Mean difference of scores, in standard deviations of the scores of calibration images.
        score_largest: Largest one.
        map_mean: Mean difference of map values, in standard deviations of the map maxima of calibration images.
        map_largest: Largest one.
        decisions: Number of images whose decision changes; None without calibration.

    Example:
        >>> Cost(42, 0.011, 0.034, 0.002, 0.15, 0).decisions
        0
    """

    images: int
    score_mean: float
    score_largest: float
    map_mean: float
    map_largest: float
    decisions: int | None


@torch.no_grad()
def cost_of(graph: DetectorGraph, runner: Runner, images: Tensor, precision: Precision = "float16") -> Cost:
    """Compare an exported file of another precision than float32 with its detector.

    Units are standard deviations of the calibration scores or, without calibration, of the scores of the images.

    Args:
        graph: Graph of the detector.
        runner: Runner of the exported file.
        images: (B, C, S, S) with B >= 1, of the graph's input type.
        precision: Precision of the file, for the error.

    Raises:
        ExportError: If the scores differ on average by more than `LARGEST`. A score that is further from the typical
            one than ten standard deviations counts relative to a tenth of this distance.

    Example:
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> graph = DetectorGraph(cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32).eval())
        >>> runner = lambda images: dict(zip(graph.outputs, (x.numpy() for x in graph(torch.from_numpy(images)))))
        >>> cost_of(graph, runner, graph.example()).score_largest
        0.0
    """
    pairs = []
    alone, rest = images[:ALONE], images[ALONE:]  # files may have another graph for one image
    for batch in (*alone.split(1), *(rest.split(BATCH) if len(rest) else ())):
        found = {name: torch.from_numpy(x) for name, x in runner(batch.numpy()).items()}
        pairs.append((dict(zip(graph.outputs, graph(batch), strict=True)), found))

    def results(name: str) -> tuple[Tensor, Tensor]:
        expected, found = (torch.cat([pair[side][name] for pair in pairs]) for side in (0, 1))
        if expected.shape != found.shape:
            raise ExportError(
                f"{name} of the exported model must be {tuple(expected.shape)}, but got {tuple(found.shape)}"
            )
        return expected, found

    scores, found_scores = results("score")
    maps, found_maps = results("anomaly_map")
    calibration = graph.detector.calibration
    normal = scores if calibration.scores is None else calibration.scores
    peaks = maps.flatten(1).amax(1) if calibration.maxima is None else calibration.maxima
    difference, spread = _difference(scores, found_scores), _spread(normal)
    map_difference, map_spread = _difference(maps, found_maps), _spread(peaks)
    changed = None
    if "is_anomalous" in graph.outputs:
        decided, found_decided = results("is_anomalous")
        changed = int((decided != found_decided).sum())
    far = (scores - normal.median()).abs() / 10
    relative = float((difference / far.clamp(min=spread)).mean())
    if not relative <= LARGEST:
        told = "" if changed is None else f" and {changed} of {len(images)} decisions changed"
        raise ExportError(
            f"scores of the exported model must differ from the detector's on average by at most "
            f"{LARGEST:g} standard deviations of normal scores for precision {precision}, but got "
            f"{relative:.2g}{told}; use float32, or disable the check and measure"
        )
    return Cost(
        len(images), float(difference.mean() / spread), float(difference.max() / spread),
        float(map_difference.mean() / map_spread), float(map_difference.max() / map_spread), changed,
    )  # fmt: skip


def _difference(expected: Tensor, found: Tensor) -> Tensor:
    return (expected.double() - found.double()).abs().nan_to_num(torch.inf, posinf=torch.inf)


def _spread(values: Tensor) -> float:
    """Return the standard deviation, or 1 nat if it is 0 or there is only one value."""
    return (float(values.double().std()) if len(values) > 1 else 0.0) or 1.0
