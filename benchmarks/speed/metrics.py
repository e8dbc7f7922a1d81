"""Speed of pixel metrics against sorting, scikit-learn and anomalib, for the same float32 scores.

- `metrics_vs_sort`: AUROC, AP, F1-max and AUPRO together, with labeled regions given, over one `numpy.sort`
- `auroc_vs_sort_N`, `aupro_vs_sort_N`: from maps with masks, including checks and labeling
- `auroc_vs_sklearn_N`, `auroc_vs_anomalib_N`, `aupro_vs_anomalib_N`: the other library's time over ours

Agreement is checked first: AUROC with the Mann-Whitney statistic and both libraries to 1e-5, AUPRO with anomalib to
2e-3, because it interpolates its curve.
"""

import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from semflow import metrics
from semflow.metrics.regions import PixelSplit, evaluate_pixels

from .timing import Report, in_turns, missing, ratio

__all__ = ["measure_metrics", "measure_pixels", "scene"]

SIDE = 256
BYTES = {"semflow": 40, "sklearn": 80, "anomalib": 160}
"""Upper estimate of the peak memory per pixel; comparisons that need more memory than available are skipped."""


def scene(pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw noise maps of 256 x 256, and masks with a disc in every other map, where scores are higher."""
    rng = np.random.default_rng(0)
    images = max(2, pixels // SIDE**2)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    masks = np.zeros((images, SIDE, SIDE), bool)
    for mask in masks[::2]:
        (row, column), radius = rng.uniform(40, 216, 2), rng.uniform(10, 40)
        mask[:] = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
    scores = rng.standard_normal(masks.shape, np.float32)
    scores[masks] += np.float32(1.5)
    return scores, masks


def measure_metrics(report: Report, pixels: int, rounds: int) -> None:
    """Measure `metrics_vs_sort` with 2 % anomalous pixels in regions of a few hundred."""
    rng = np.random.default_rng(0)
    anomalous = pixels // 50
    scores = rng.normal(size=pixels).astype(np.float32)
    scores[:anomalous] += 1.5
    regions = np.arange(anomalous) // 400
    weights = 1.0 / np.bincount(regions)[regions]
    parts = [PixelSplit(scores[anomalous:].copy(), scores[:anomalous].copy(), weights)]
    np.testing.assert_allclose(
        evaluate_pixels(parts, 0.3).auroc, mann_whitney(scores, np.arange(pixels) < anomalous), atol=1e-5
    )
    seconds = in_turns({"metrics": lambda: evaluate_pixels(parts, 0.3), "sort": lambda: np.sort(scores)}, rounds)
    report.ratio("metrics_vs_sort", ratio(seconds, "metrics", "sort") | {"pixels": str(pixels)})


def mann_whitney(scores: np.ndarray, anomalous: np.ndarray) -> float:
    """Compute AUROC from ranks."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    count = int(anomalous.sum())
    statistic = float(ranks[anomalous].sum()) - count * (count + 1) / 2
    return statistic / (count * (len(scores) - count))


def measure_pixels(report: Report, pixels: int, rounds: int) -> None:
    """Measure the ratios named by the number of pixels; skip peers that are missing or need too much memory."""
    scores, masks = scene(pixels)
    size = f"{pixels:.0e}".replace("e+0", "e")
    flat, flags = scores.ravel(), masks.ravel()
    ours: dict[str, Callable[[], Any]] = {
        "auroc": lambda: metrics.auroc(scores, masks),
        "aupro": lambda: metrics.aupro(scores, masks),
    }
    sides: dict[str, Callable[[], Any]] = {**ours, "sort": lambda: np.sort(flat)}
    peers = {"auroc": ["sklearn", "anomalib"], "aupro": ["anomalib"]}
    for name in {peer for names in peers.values() for peer in names}:
        reason = missing(name) or does_not_fit(pixels, name)
        for metric in (metric for metric, names in peers.items() if name in names):
            if reason:
                report.skip(reason, f"{metric}_vs_{name}_{size}")
            else:
                theirs = peer_metric(name, metric, scores, masks)
                np.testing.assert_allclose(theirs(), ours[metric](), atol=1e-5 if metric == "auroc" else 2e-3)
                sides[f"{metric} {name}"] = theirs
    np.testing.assert_allclose(ours["auroc"](), mann_whitney(flat, flags), atol=1e-5)
    seconds = in_turns(sides, rounds)
    for metric, names in peers.items():
        report.ratio(f"{metric}_vs_sort_{size}", ratio(seconds, metric, "sort"))
        for name in names:
            if f"{metric} {name}" in sides:
                report.ratio(f"{metric}_vs_{name}_{size}", ratio(seconds, f"{metric} {name}", metric))


def peer_metric(name: str, metric: str, scores: np.ndarray, masks: np.ndarray) -> Callable[[], float]:
    """Return the metric of another library for the same maps, in its fastest types."""
    if name == "sklearn":
        from sklearn.metrics import roc_auc_score

        flat, flags = scores.ravel(), masks.ravel()
        return lambda: float(roc_auc_score(flags, flat))
    import torch

    from .against_anomalib import import_anomalib

    import_anomalib()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from anomalib.metrics.aupro import _AUPRO
        from anomalib.metrics.auroc import _AUROC
    make = _AUROC if metric == "auroc" else _AUPRO
    predictions, targets = torch.from_numpy(scores), torch.from_numpy(masks.astype(np.int64))

    def run() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = make()
            found.update(predictions, targets)
            return float(found.compute())

    return run


def does_not_fit(pixels: int, name: str) -> str | None:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = pixels * BYTES[name]
    if needed <= free:
        return None
    return f"{name} would need about {needed / 2**30:.0f} GiB for {pixels:.0e} pixels, {free / 2**30:.0f} are free"
