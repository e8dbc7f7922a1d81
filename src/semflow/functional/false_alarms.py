"""Regions of a map of squared latents that are too large and too bright for chance: number of false alarms (NFA).

In the background model, the squares s of the n locations of a map are independent and chi-squared with C degrees of
freedom. All locations of a connected set R are at least m = min_R s with probability P(R) = P(chi2_C >= m)^|R|, where
ln P(chi2_C >= m) <= -C/2 (m/C - 1 - ln(m/C)) for m > C (Chernoff). There are about a b^r / r shapes of r connected
squares (Jensen, 2003), so at most N = n sum_{r <= n} a b^r / r sets are tested, and NFA(R) = N P(R): in a map of the
model, at most 1 set with NFA < 1 is expected.

Regions are the connected components of all upper level sets {s >= m}, which form a tree. A region is chosen if none
within it has a lower NFA, and if it lies in no chosen one (Tailanian, Musé, Pardo, "U-Flow", arXiv 2211.12353).
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy
import torch
from torch import Tensor

from semflow._validation import at_least, positive
from semflow.errors import ShapeError

SHAPES = (0.316915, 4.062570)  # a and b of the number of shapes
Array = npt.NDArray[Any]


def region_significance(squares: Tensor, dof: float, maps: int = 1) -> Tensor:
    """Compute -log10 NFA of the chosen regions of maps (B, H, W), and 0 outside of those with NFA < 1.

    `significance > 0` is a mask without a threshold to choose. N counts so many sets that blurred noise rarely gives a
    region either. Real latents differ from the model in more ways; for a guaranteed rate of false alarms, calibrate the
    largest significance of each map.

    Computed on the CPU, without gradients.

    Args:
        squares: Squares summed over the channels, (B, H, W), not negative.
        dof: C, the number of channels.
        maps: Number of maps, such as scales, that an image is tested on; multiplies the number of tests.

    Raises:
        ShapeError: If squares have another shape, or are negative or NaN.

    Example:
        >>> squares = torch.full((1, 8, 8), 40.0)
        >>> squares[0, 2:6, 2:6] = 250.0
        >>> (region_significance(squares, dof=40) > 0).sum().item()
        16
    """
    positive(dof=dof)
    at_least(1, maps=maps)
    if squares.dim() != 3 or 0 in squares.shape[1:] or squares.is_complex():
        raise ShapeError(f"squares must be maps (B, H, W) of numbers, but got {tuple(squares.shape)}, {squares.dtype}")
    if not bool((squares >= 0).all()):
        raise ShapeError("squares must be at least 0, but got negative values or NaN")
    values = squares.detach().cpu().double().numpy()
    log_tests = _log_tests(values[0].size if len(values) else 1) + math.log(maps)
    excess = np.clip(values / dof, 1.0, 1e200)  # infinite squares stay comparable
    log_p = -dof / 2 * (excess - 1 - np.log(excess))
    found = [_significance(x, log_tests) for x in log_p]
    dtype = torch.promote_types(squares.dtype, torch.float32)
    return torch.from_numpy(np.stack(found) if found else values).to(dtype).to(squares.device)


@lru_cache(maxsize=64)
def _log_tests(n: int) -> float:
    """Return ln N for maps of n locations."""
    a, b = SHAPES
    sizes = np.arange(1, n + 1)
    return float(scipy.special.logsumexp(math.log(n * a) + sizes * math.log(b) - np.log(sizes)))


def _significance(log_p: Array, log_tests: float) -> Array:
    """Compute the significance of a map (H, W) of ln P of each location alone."""
    # A region of NFA < 1 consists of locations with at most this ln P. A connected set of those is left out if it would
    # not even be found with the lowest ln P everywhere.
    labels, count = scipy.ndimage.label(log_p < -log_tests / log_p.size)
    lowest = scipy.ndimage.minimum(log_p, labels, np.arange(1, count + 1))
    possible = np.bincount(labels.ravel(), minlength=1)[1:] * np.asarray(lowest) + log_tests < 0
    kept = np.concatenate([[False], possible])[labels]
    padded = np.pad(np.where(kept, log_p, np.inf), 1, constant_values=np.inf)
    order = np.argsort(padded.ravel(), kind="stable")[: np.count_nonzero(kept)].tolist()
    chosen = _choose(padded.ravel().tolist(), order, padded.shape[1], log_tests)
    found: Array = np.abs(np.reshape(chosen, padded.shape)[1:-1, 1:-1]) / math.log(10)
    return found


def _choose(log_p: list[float], order: list[int], width: int, log_tests: float) -> list[float]:
    """Return ln NFA of the chosen region with NFA < 1 that each location of a padded map lies in, or 0.

    The locations in `order`, by increasing ln P, are joined to trees, whose subtrees are the upper level sets. The
    latest location is the root of its tree; of equal ones, only the last stands for a level set.
    """
    above, root = [-1] * len(log_p), [-1] * len(log_p)
    size, log_nfa, within, chosen = ([0.0] * len(log_p) for _ in range(4))
    for p in order:
        level, count, lowest = log_p[p], 1.0, math.inf
        above[p] = root[p] = p
        for neighbor in (p - width, p - 1, p + 1, p + width):
            q = root[neighbor]
            if q < 0 or q == p:
                continue
            while root[q] != q:
                root[q] = q = root[root[q]]
            root[neighbor] = q
            if q != p:
                above[q] = root[q] = p
                count += size[q]
                lowest = min(lowest, within[q] if log_p[q] == level else min(within[q], log_nfa[q]))
        size[p], within[p], log_nfa[p] = count, lowest, count * level + log_tests
    for p in reversed(order):
        q = above[p]
        if chosen[q]:
            chosen[p] = chosen[q]
        elif log_nfa[p] <= within[p] and log_nfa[p] < 0 and (q == p or log_p[q] != log_p[p]):
            chosen[p] = log_nfa[p]
    return chosen
