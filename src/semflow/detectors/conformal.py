"""Split conformal p-values and thresholds, as functions of the scores of held-out normal images.

With the scores s_1 .. s_n of n normal images that were not trained on, the p-value of a score s is

    p(s) = (1 + #{i : s_i >= s}) / (n + 1).

If the image is normal and exchangeable with the n, its rank among the n + 1 is uniform, so P(p <= a) <= a for every a,
every n and every distribution of the scores. Ties count against an alarm. Without ties
P(p <= a) = floor(a (n + 1)) / (n + 1). The probability includes the draw of the calibration images; see
`rate_interval`.

References: Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World, 2005; Bates et al.: Testing for Outliers
with Conformal p-values, 2023.
"""

import math
from fractions import Fraction

import scipy
import torch
from torch import Tensor

from semflow._validation import counted
from semflow.errors import ConfigError, ShapeError

RATES = (0.01, 0.05, 0.1)
FINEST = 10**9  # the largest denominator of a rate


def images_needed(false_alarm_rate: float) -> int:
    """Return the smallest number of calibration images that allows an alarm at a rate: ceil(1 / rate) - 1.

    >>> [images_needed(rate) for rate in (0.1, 0.05, 0.01)]
    [9, 19, 99]
    """
    return math.ceil(1 / exact_rate(false_alarm_rate)) - 1


def default_rate(images: int) -> float:
    """Return the lowest of 1, 5 and 10 % that a number of calibration images, at least 9, allows.

    >>> [default_rate(n) for n in (9, 41, 99)]
    [0.1, 0.05, 0.01]
    """
    return check_count(images, None)


def check_count(images: int, false_alarm_rate: float | None, category: str = "") -> float:
    """Return a rate, or the `default_rate` for None; raise ConfigError if there are too few images for it."""
    if false_alarm_rate is None:
        false_alarm_rate = next((rate for rate in RATES if images_needed(rate) <= images), RATES[-1])
    needed = images_needed(false_alarm_rate)
    if images < needed:
        allowed = math.ceil(1e4 / (images + 1)) / 1e4  # rounded up, so that it is allowed
        of = f" of {category}" if category else ""
        hint = f" or use a rate of at least {allowed:g}" if images else ""
        raise ConfigError(
            f"calibration must have at least {counted(needed, 'image')}{of} for false_alarm_rate "
            f"{false_alarm_rate:g}, but got {images}; add images{hint}"
        )
    return false_alarm_rate


def conformal_p_values(calibration: Tensor, scores: Tensor) -> Tensor:
    """Compute p-values (1 + #{s_i >= s}) / (n + 1), float64, of scores (..., B) with calibration scores (..., n).

    A score of NaN gets the smallest p-value, 1 / (n + 1), since it is no evidence that the image is normal.

    >>> conformal_p_values(Tensor([1.0, 2.0, 2.0, 3.0]), Tensor([0.0, 2.0, 5.0])).tolist()
    [1.0, 0.8, 0.2]
    """
    if calibration.dim() == 0 or calibration.shape[-1] == 0:
        raise ShapeError(f"calibration must hold at least one score, but got shape {tuple(calibration.shape)}")
    wide = torch.float32 if scores.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    at_least = (calibration.to(wide)[..., None, :] >= scores.to(wide)[..., :, None]).sum(-1)
    return (1 + at_least).to(wide) / (calibration.shape[-1] + 1)


def conformal_threshold(calibration: Tensor, false_alarm_rate: float) -> Tensor:
    """Return the ceil((n + 1)(1 - rate))-th smallest of the calibration scores (..., n): scores above have p <= rate.

    >>> conformal_threshold(Tensor(range(1, 20)), 0.1).item()
    18.0

    Raises:
        ConfigError: If there are fewer images than `images_needed`, or the rate is not between 0 and 1.
    """
    count = calibration.shape[-1]
    rate = exact_rate(check_count(count, false_alarm_rate))
    return calibration.sort(-1).values[..., math.ceil((count + 1) * (1 - rate)) - 1]


def rate_interval(images: int, false_alarm_rate: float, level: float = 0.9) -> tuple[float, float]:
    """Return the interval in which the false-alarm rate of one particular calibration lies with probability `level`.

    On average over calibrations the rate is at most the one asked for. For particular calibration images it is
    distributed as Beta(m, n + 1 - m) with m = floor(rate (n + 1)) if no scores tie; more images narrow it.

    >>> [round(x, 4) for x in rate_interval(99, 0.01)]
    [0.0005, 0.0298]
    """
    if not 0 < level < 1:
        raise ConfigError(f"level must be between 0 and 1, but got {level}")
    alarms = math.floor((images + 1) * exact_rate(check_count(images, false_alarm_rate)))
    low, high = (
        float(scipy.special.betaincinv(alarms, images + 1 - alarms, q)) for q in ((1 - level) / 2, (1 + level) / 2)
    )
    return low, high


def exact_rate(rate: float) -> Fraction:
    """Return the fraction closest to a rate, so that (9 + 1) * 0.1 is exactly one image.

    >>> exact_rate(0.1), exact_rate(1 / 42)
    (Fraction(1, 10), Fraction(1, 42))
    """
    exact = Fraction(rate).limit_denominator(FINEST) if 1 / FINEST <= rate < 1 else Fraction(1)
    if exact == 1:  # or so close that it rounds to 1
        raise ConfigError(f"false_alarm_rate must be between 0 and 1, such as 0.01, but got {rate!r}")
    return exact
