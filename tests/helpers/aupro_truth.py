"""AUPRO by its definition, in exact fractions."""

from fractions import Fraction
from itertools import pairwise

import numpy as np


def regions_of(mask):
    """Return the 8-connected regions as lists of pixels, by flood fill."""
    left, regions = {(int(i), int(j)) for i, j in np.argwhere(mask)}, []
    while left:
        region, front = [], [left.pop()]
        while front:
            i, j = front.pop()
            region.append((i, j))
            near = {(i + di, j + dj) for di in (-1, 0, 1) for dj in (-1, 0, 1)} & left
            left -= near
            front += near
        regions.append(region)
    return regions


def reference_aupro(maps, masks, limit):
    """Compute the definition: binarize at every distinct score, measure, join the points, integrate to the limit."""
    limit = Fraction(limit)
    regions = [[m[p] for p in region] for m, mask in zip(maps, masks, strict=True) for region in regions_of(mask)]
    normal = [s for m, mask in zip(maps, masks, strict=True) for s in m[~mask]]
    points = [(Fraction(0), Fraction(0))]
    for t in sorted({s for m in maps for s in m.ravel().tolist()}, reverse=True):
        fpr = Fraction(sum(1 for s in normal if s >= t), len(normal))
        overlaps = [Fraction(sum(1 for s in region if s >= t), len(region)) for region in regions]
        points.append((fpr, sum(overlaps, Fraction(0)) / len(regions)))
    area = Fraction(0)
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
        elif x0 < limit:
            at_limit = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            area += (limit - x0) * (y0 + at_limit) / 2
    return float(area / limit)
