"""Split conformal p-values and thresholds: pure functions of the scores of held-out normal images.

With the scores s_1 .. s_n of n normal images that were not trained on, the p-value of a score s is

    p(s) = (1 + #{i : s_i >= s}) / (n + 1).

If the image is normal and exchangeable with the n, its rank among the n + 1 is uniform, so P(p <= a) <= a for every a,
at this n and whatever the distribution of the scores. Ties count against an alarm. Without ties
P(p <= a) = floor(a (n + 1)) / (n + 1). The probability is over the calibration images too, see `rate_interval`.

Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World, 2005; Bates and others: Testing for Outliers with
Conformal p-values, 2023.
"""

import math
from fractions import Fraction
from typing import NoReturn

from scipy.special import betaincinv
from torch import Tensor

from semflow.errors import ConfigError, ShapeError

__all__ = [
    "FINEST",
    "check_count",
    "conformal_p_values",
    "conformal_threshold",
    "default_rate",
    "exact_rate",
    "images_needed",
    "rate_interval",
]

RATES = (0.01, 0.05, 0.1)
FINEST = 10**9  # the largest denominator of a rate


def images_needed(false_alarm_rate: float) -> int:
    """The least number of calibration images that allows an alarm at this rate: ceil(1 / rate) - 1.

    >>> [images_needed(rate) for rate in (0.1, 0.05, 0.01)]
    [9, 19, 99]
    """
    return math.ceil(1 / exact_rate(false_alarm_rate)) - 1


def default_rate(images: int) -> float:
    """The lowest of 1, 5 and 10 % that this many calibration images allow.

    >>> [default_rate(n) for n in (9, 41, 99)]
    [0.1, 0.05, 0.01]

    Raises:
        ConfigError: they are fewer than the 9 that 10 % takes.
    """
    allowed = [rate for rate in RATES if images_needed(rate) <= images]
    if not allowed:
        _refuse_few(images, RATES[-1])
    return allowed[0]


def check_count(images: int, false_alarm_rate: float | None) -> float:
    """The rate that this many images are to give, None being `default_rate`'s.

    Raises:
        ConfigError: they are too few for it; the message says how many are needed.

    >>> check_count(12, None)
    0.1
    """
    if false_alarm_rate is None:
        return default_rate(images)
    if images < images_needed(false_alarm_rate):
        _refuse_few(images, false_alarm_rate)
    return false_alarm_rate


def conformal_p_values(calibration: Tensor, scores: Tensor) -> Tensor:
    """p-values (1 + #{s_i >= s}) / (n + 1), float64, of scores (..., B) against calibration scores (..., n).

    A score that is not a number gets the least p-value, 1 / (n + 1): it is no evidence that the image is normal.

    >>> conformal_p_values(Tensor([1.0, 2.0, 2.0, 3.0]), Tensor([0.0, 2.0, 5.0])).tolist()
    [1.0, 0.8, 0.2]

    Raises:
        ShapeError: there is no calibration score.
    """
    _check_scores(calibration)
    at_least = (calibration.double()[..., None, :] >= scores.double()[..., :, None]).sum(-1)
    return (1 + at_least).double() / (calibration.shape[-1] + 1)


def conformal_threshold(calibration: Tensor, false_alarm_rate: float) -> Tensor:
    """The ceil((n + 1)(1 - rate))-th smallest of the calibration scores (..., n): a score above it has p <= rate.

    >>> conformal_threshold(Tensor(range(1, 20)), 0.1).item()
    18.0

    Raises:
        ConfigError: the images are fewer than `images_needed`, or the rate is not between 0 and 1.
        ShapeError: there is no calibration score.
    """
    _check_scores(calibration)
    count = calibration.shape[-1]
    rate = exact_rate(check_count(count, false_alarm_rate))
    return calibration.sort(-1).values[..., math.ceil((count + 1) * (1 - rate)) - 1]


def rate_interval(images: int, false_alarm_rate: float, level: float = 0.9) -> tuple[float, float]:
    """Where the false-alarm rate of one calibration lies with probability `level`.

    Over all calibrations the rate is at most the one asked for; with given calibration images it is what these images
    make of it, Beta(m, n + 1 - m) with m = floor(rate (n + 1)) where no scores tie: more images narrow it.

    >>> [round(x, 4) for x in rate_interval(99, 0.01)]
    [0.0005, 0.0298]
    """
    if not 0 < level < 1:
        raise ConfigError(f"level must be between 0 and 1, but got {level}")
    alarms = math.floor((images + 1) * exact_rate(false_alarm_rate))
    if alarms < 1:
        _refuse_few(images, false_alarm_rate)
    low, high = (float(betaincinv(alarms, images + 1 - alarms, q)) for q in ((1 - level) / 2, (1 + level) / 2))
    return low, high


def _check_scores(calibration: Tensor) -> None:
    if calibration.dim() == 0 or calibration.shape[-1] == 0:
        raise ShapeError(f"calibration must hold at least one score, but got {tuple(calibration.shape)}")


def exact_rate(rate: float) -> Fraction:
    """The rate as the fraction that was meant: of the double 0.1, (9 + 1) * 0.1 must make one whole image.

    >>> exact_rate(0.1), exact_rate(1 / 42)
    (Fraction(1, 10), Fraction(1, 42))
    """
    exact = Fraction(rate).limit_denominator(FINEST) if 1 / FINEST <= rate < 1 else Fraction(1)
    if exact == 1:  # or so near to it that it is the same
        raise ConfigError(f"false_alarm_rate must be between 0 and 1, such as 0.01, but got {rate!r}")
    return exact


def _refuse_few(images: int, rate: float) -> NoReturn:
    allowed = math.ceil(1e4 / (images + 1)) / 1e4  # rounded up, so that it can be asked for
    hint = f" or take a rate of at least {allowed:g}" if images else ""
    raise ConfigError(
        f"false_alarm_rate {rate:g} needs at least {images_needed(rate)} calibration images, but got {images}; "
        f"add images{hint}"
    )
