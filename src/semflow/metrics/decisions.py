"""Measures of decisions that were made without the labels: F1, and the calibration error of p-values."""

from typing import NamedTuple

import numpy as np

from semflow.errors import ShapeError

from .inputs import Values, as_flags, as_scores, check_same_shape


class CalibrationError(NamedTuple):
    """Calibration error of the p-values of normal images.

    Attributes:
        error: Mean over all rates in [0, 1] of the difference between the rate and the share of false alarms.
        distance: Largest difference.
        excess: Largest amount by which the share of false alarms exceeds the rate; 0 if it never does.

    Example:
        >>> calibration_error([0.2, 0.4, 0.6, 0.8]).excess <= calibration_error([0.2, 0.4, 0.6, 0.8]).distance
        True
    """

    error: float
    distance: float
    excess: float


def f1(decisions: Values, labels: Values) -> float:
    """Compute F1 = 2 TP / (2 TP + FP + FN) of decisions.

    With a threshold from normal validation images, F1 of pixels, `f1(maps > threshold, masks)`, is SegF1, and F1 of
    images, `f1(scores > threshold, labels)`, is ClassF1 (Heckler-Kram et al., "The MVTec AD 2 Dataset", 2025). Unlike
    `f1_max`, labels have no part in the threshold. All pixels of all images count together.

    Args:
        decisions: True or 1 where called anomalous; tensor or array of any shape.
        labels: 1 or True where anomalous, else 0; the shape of `decisions`.

    Raises:
        ShapeError: If the shapes differ, a value is neither 0 nor 1, or no label is 1.

    Example:
        >>> f1([True, True, False, False], [1, 0, 1, 0])
        0.5
    """
    return f1_of_counts(*count_decisions(decisions, labels))


def count_decisions(decisions: Values, labels: Values) -> tuple[int, int, int]:
    """Count entries that are called anomalous and are, that are called so, and that are anomalous."""
    called, flags = as_flags("decisions", decisions), as_flags("labels", labels)
    check_same_shape("decisions", called, "labels", flags)
    return int((called & flags).sum()), int(called.sum()), int(flags.sum())


def f1_of_counts(found: int, called: int, anomalous: int) -> float:
    """Return F1 of the counts of `count_decisions`."""
    if not anomalous:
        raise ShapeError("labels must have at least one anomalous (1) entry, but got none; F1 is not defined")
    return 2 * found / (called + anomalous)


def calibration_error(p_values: Values) -> CalibrationError:
    """Compare p-values of normal images with the false-alarm rates that they promise.

    At rate t, an image is called anomalous if p <= t; with F(t) the share of the p-values up to t, the errors are

        error    = integral from 0 to 1 of |F(t) - t| dt
        distance = sup_t |F(t) - t|      (of Kolmogorov and Smirnov)
        excess   = sup_t max(F(t) - t, 0)

    computed exactly from the sorted p-values. Conformal p-values of n calibration images are multiples of 1 / (n + 1),
    which alone costs a distance of up to 1 / (n + 1); by chance, m p-values that are right have a distance of about
    0.87 / sqrt(m).

    Args:
        p_values: p-values of normal images that had no part in the calibration; tensor or array of any shape.

    Raises:
        ShapeError: If p_values is empty or has values outside [0, 1].

    Example:
        >>> calibration_error([0.25, 0.75])
        CalibrationError(error=0.125, distance=0.25, excess=0.25)
    """
    p = np.sort(as_scores("p_values", p_values), axis=None).astype(np.float64)
    if not p.size or p[0] < 0 or p[-1] > 1:
        found = f"values from {p[0]:g} to {p[-1]:g}" if p.size else "none"
        raise ShapeError(f"p_values must be in [0, 1], at least one, but got {found}")
    shares = np.arange(len(p) + 1) / len(p)  # F on each of the intervals between 0, the p-values and 1
    left, right = np.concatenate(([0.0], p)), np.concatenate((p, [1.0]))
    below, above = np.clip(shares, left, right) - left, right - np.clip(shares, left, right)
    # |F - t| is F - t up to t = F and t - F from there on; both may be outside of the interval.
    start, end = np.abs(shares - left), np.abs(shares - right)
    near = np.where((shares >= left) & (shares <= right), 0.0, np.minimum(start, end))
    area = below * (start + near) / 2 + above * (near + end) / 2
    excess = max(0.0, float((shares[1:] - p).max()))
    return CalibrationError(float(area.sum()), max(excess, float((p - shares[:-1]).max())), excess)
