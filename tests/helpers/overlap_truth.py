"""AUPIMO and sPRO by their definitions: binarize at every distinct score, measure, join the points, integrate."""

import math
from fractions import Fraction
from itertools import pairwise


def reference_spro(maps, defects, limit):
    """Compute sPRO in exact fractions; `defects` has (mask, saturation) of each map."""
    limit = Fraction(limit)
    found = [(m[mask].tolist(), saturation) for m, ds in zip(maps, defects, strict=True) for mask, saturation in ds]
    found = [(scores, min(Fraction(saturation), len(scores))) for scores, saturation in found if scores]
    normal = []
    for m, ds in zip(maps, defects, strict=True):
        inside = [any(mask[p] for mask, _ in ds) for p in _places(m)]
        normal += [m[p] for p, is_in in zip(_places(m), inside, strict=True) if not is_in]
    points = [(Fraction(0), Fraction(0))]
    for t in sorted({float(m[p]) for m in maps for p in _places(m)}, reverse=True):
        fpr = Fraction(sum(1 for s in normal if s >= t), len(normal))
        overlaps = [min(Fraction(sum(1 for s in scores if s >= t)) / s_i, Fraction(1)) for scores, s_i in found]
        points.append((fpr, sum(overlaps, Fraction(0)) / len(overlaps)))
    area = Fraction(0)
    for (x0, y0), (x1, y1) in pairwise(points):
        end = min(x1, limit)
        if x0 < end:
            area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return float(area / limit)


def reference_aupimo(maps, masks, bounds):
    """Compute AUPIMO of each anomalous image; segments of the curve are integrated in closed form, in float64."""
    low, high = bounds
    normal = [m for m, mask in zip(maps, masks, strict=True) if not mask.any()]
    thresholds = sorted({float(m[p]) for m in maps for p in _places(m)}, reverse=True)
    rates = [0.0] + [sum(float((m >= t).mean()) for m in normal) / len(normal) for t in thresholds]
    values = []
    for m, mask in zip(maps, masks, strict=True):
        if not mask.any():
            values.append(math.nan)
            continue
        overlaps = [0.0] + [float((m[mask] >= t).mean()) for t in thresholds]
        area = 0.0
        for (x0, x1), (y0, y1) in zip(pairwise(rates), pairwise(overlaps), strict=True):
            start, end = max(x0, low), min(x1, high)
            if start < end:  # y = y0 + slope (x - x0), over dx / x
                slope = (y1 - y0) / (x1 - x0)
                area += (y0 - slope * x0) * math.log(end / start) + slope * (end - start)
        values.append(area / math.log(high / low))
    return values


def _places(m):
    return [(i, j) for i in range(m.shape[0]) for j in range(m.shape[1])]
