"""Checks for scores that do not tell images apart, as a training that has diverged leaves them."""

import math

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
    """Raise TrainingError if a calibration on scores (n,) and maxima (n,) of maps could never raise an alarm."""
    named = (("scores", scores), ("highest values of the maps", maxima))
    for (name, values), ceiling in zip(named, ceilings, strict=True):
        found = collapsed(values)
        if found:
            raise TrainingError(f"{name} of calibration images must be finite and differ, but got {found}; {ADVICE}")
        threshold = conformal_threshold(values, false_alarm_rate).item()
        if math.isfinite(ceiling) and threshold >= ceiling * (1 - 1e-6):
            raise TrainingError(
                f"{name} of calibration images must have a threshold below {ceiling:.4g}, the highest that there can "
                f"be, but got {threshold:.4g}; {ADVICE}"
            )
