"""Speed and agreement of semflow.metrics: `python -m benchmarks.speed.against_sklearn [--images 160 --repeats 5]`.

AUROC, average precision and F1-max are compared with scikit-learn, AUPRO with a direct implementation of its definition
(sort all pixels, accumulate both curves, merge ties, sum trapezoids up to the limit). The sides take turns, and the
median of the ratios is printed. Agreement to 1e-9 is checked first.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from semflow import metrics

from ..shared.record import provenance, versions


def scene(images: int, size: int, seed: int, levels: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Draw smooth maps with higher scores inside discs; two images in three have one to three discs."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    masks = np.zeros((images, size, size), dtype=bool)
    for i in range(images):
        for _ in range(int(rng.integers(1, 4)) if i % 3 else 0):
            (row, column), radius = rng.uniform(0, size, 2), rng.uniform(size / 60, size / 10)
            masks[i] |= (rows - row) ** 2 + (columns - column) ** 2 < radius**2
    scores = ndimage.gaussian_filter(rng.normal(size=masks.shape), (0, 3, 3)) * 10 + masks * 1.5
    if levels:
        scores = np.round((scores - scores.min()) / np.ptp(scores) * (levels - 1))
    return scores.astype(np.float32), masks


def aupro_by_definition(scores: np.ndarray, masks: np.ndarray, limit: float = 0.3) -> float:
    steps, regions = np.zeros(scores.shape), 0
    for i, mask in enumerate(masks):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        steps[i][mask] = (1 / np.bincount(labels.ravel()))[labels[mask]]
        regions += count
    order = np.argsort(-scores.ravel())
    values = scores.ravel()[order]
    last = np.append(values[1:] != values[:-1], True)  # one point per distinct score
    normal = ~masks.ravel()[order]
    fpr = np.append(0, (np.cumsum(normal) / normal.sum())[last])
    pro = np.append(0, (np.cumsum(steps.ravel()[order]) / regions)[last])
    end = int(np.searchsorted(fpr, limit, side="right"))
    x, y = np.append(fpr[:end], limit), np.append(pro[:end], np.interp(limit, fpr, pro))
    return float(np.dot(np.diff(x), (y[1:] + y[:-1]) / 2) / limit)


def f1_by_sklearn(scores: np.ndarray, masks: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(masks.ravel(), scores.ravel())
    return float((2 * precision * recall / np.maximum(precision + recall, 1e-300)).max())


PAIRS: dict[str, tuple[Callable[..., float], Callable[..., float]]] = {
    "auroc": (metrics.auroc, lambda s, m: roc_auc_score(m.ravel(), s.ravel())),
    "average_precision": (metrics.average_precision, lambda s, m: average_precision_score(m.ravel(), s.ravel())),
    "f1_max": (metrics.f1_max, f1_by_sklearn),
    "aupro": (metrics.aupro, aupro_by_definition),
}


def all_by_reference(scores: np.ndarray, masks: np.ndarray) -> tuple[float, ...]:
    return tuple(reference(scores, masks) for _, reference in PAIRS.values())


def timed(function: Callable[..., object], *arguments: np.ndarray) -> tuple[float, object]:
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def compare(name: str, ours: Callable[..., object], theirs: Callable[..., object], data: tuple, repeats: int) -> None:
    rounds = []
    for _ in range(repeats):
        (a, value), (b, reference) = timed(ours, *data), timed(theirs, *data)
        np.testing.assert_allclose(value, reference, rtol=0, atol=1e-9, err_msg=name)
        rounds.append((a, b))
    ratios = sorted(b / a for a, b in rounds)
    print(
        f"{name:18} {statistics.median(a for a, _ in rounds):8.3f} s {statistics.median(b for _, b in rounds):8.3f} s"
        f"   {statistics.median(ratios):5.1f} x  ({ratios[0]:.1f} to {ratios[-1]:.1f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.speed.against_sklearn",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    head = provenance(["python", "-m", "benchmarks.speed.against_sklearn", *sys.argv[1:]])
    head |= {"versions": versions("scipy", "scikit-learn"), "seed": options.seed}
    print("\n".join(f"{key}: {value}" for key, value in head.items()))
    for kind, levels in (("continuous", None), ("256 levels", 256)):
        data = scene(options.images, options.size, options.seed, levels)
        size = f"{options.images} maps of {options.size} x {options.size}"
        print(f"\n{size}, {kind}, {data[1].mean():.1%} anomalous; {options.repeats} rounds")
        print(f"{'':18} {'semflow':>10} {'reference':>10}   ratio (range)")
        for name, (ours, theirs) in PAIRS.items():
            compare(name, ours, theirs, data, options.repeats)
        compare("all four", metrics.pixel_metrics, all_by_reference, data, options.repeats)


if __name__ == "__main__":
    main()
