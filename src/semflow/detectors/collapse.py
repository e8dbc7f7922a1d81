"""Checks for scores that do not tell images apart, as a training that has diverged leaves them."""

import math
import warnings

from torch import Tensor

from semflow.errors import TrainingError

from .conformal import conformal_threshold

ADVICE = "fit the model again, with a lower learning rate if it was trained, or on images that differ"


def collapsed(values: Tensor) -> str:
    """Say how values (n,) have collapsed, or return "" if they tell images apart: not finite, or all the same.

    >>> collapsed(Tensor([2.0, 2.0, 2.0])), collapsed(Tensor([1.0, math.nan])), collapsed(Tensor([2.0, 2.1]))
    ('2 for all of 3', 'nan', '')
    """
    if not values.isfinite().all():
        return f"{values[~values.isfinite()][0].item():g}"
    if len(values) > 1 and (values.max() - values.min()) <= 1e-6 * values.abs().max():
        return f"{values[0].item() + 0.0:g} for all of {len(values)}"
    return ""


def check_spread(scores: Tensor, maxima: Tensor, ceilings: tuple[float, float], false_alarm_rate: float) -> None:
    """Raise TrainingError if a calibration on scores (n,) could never raise an alarm.

    Warn if it could never mark a pixel, because the maxima (n,) of the maps are all the same or at their ceiling.
    """
    found = collapsed(scores)
    if found:
        raise TrainingError(f"scores of calibration images must be finite and differ, but got {found}; {ADVICE}")
    if not maxima.isfinite().all():
        raise TrainingError(f"maps of calibration images must be finite, but got {collapsed(maxima)}; {ADVICE}")
    threshold = conformal_threshold(scores, false_alarm_rate).item()
    if _reaches(threshold, ceilings[0]):
        raise TrainingError(
            f"scores of calibration images must have a threshold below {ceilings[0]:.4g}, the highest that there can "
            f"be, but got {threshold:.4g}; {ADVICE}"
        )
    if collapsed(maxima) or _reaches(conformal_threshold(maxima, false_alarm_rate).item(), ceilings[1]):
        warnings.warn(
            f"masks of anomalous pixels will be empty: maps of good images reach {maxima.max().item():.4g}, above "
            "which nothing is marked; train for longer",
            stacklevel=2,
        )


def _reaches(threshold: float, ceiling: float) -> bool:
    return math.isfinite(ceiling) and threshold >= ceiling * (1 - 1e-6)
