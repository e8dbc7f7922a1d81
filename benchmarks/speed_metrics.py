"""Exact pixel metrics against the sort that they cannot do without."""

import time

import numpy as np

from semflow.metrics.regions import PixelSplit, evaluate_pixels

from .speed_flows import ratio

__all__ = ["measure_metrics"]


def measure_metrics(pixels: int, rounds: int) -> dict[str, dict[str, float]]:
    """`metrics_vs_sort`: AUROC, AP, F1-max and AUPRO together over `numpy.sort` of the same float32 scores.

    Two pixels of a hundred are anomalous, in regions of some hundred, labelled beforehand.
    """
    rng = np.random.default_rng(0)
    anomalous = pixels // 50
    scores = rng.normal(size=pixels).astype(np.float32)
    scores[:anomalous] += 1.5
    regions = np.arange(anomalous) // 400
    weights = 1.0 / np.bincount(regions)[regions]
    parts = [PixelSplit(scores[anomalous:].copy(), scores[:anomalous].copy(), weights)]
    _check(scores, anomalous, evaluate_pixels(parts, 0.3).auroc)
    seconds: dict[str, list[float]] = {"metrics": [], "sort": []}
    for _ in range(rounds):
        for name, run in (("metrics", lambda: evaluate_pixels(parts, 0.3)), ("sort", lambda: np.sort(scores))):
            began = time.process_time()
            run()
            seconds[name].append(time.process_time() - began)
    return {"metrics_vs_sort": ratio(seconds, "metrics", "sort")}


def _check(scores: np.ndarray, anomalous: int, auroc: float) -> None:
    """Mann and Whitney's statistic from the ranks of all, another way to the same number."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    statistic = ranks[:anomalous].sum() - anomalous * (anomalous + 1) / 2
    np.testing.assert_allclose(auroc, statistic / (anomalous * (len(scores) - anomalous)), atol=1e-5)
