"""The conformal rules, as statistics are tested: against brute force, and over many resamplings."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from semflow.detectors import (
    Calibration,
    conformal_p_values,
    conformal_threshold,
    default_rate,
    images_needed,
    rate_interval,
)
from semflow.errors import ConfigError, ShapeError

TRIALS = 10_000
# A right rule misses such a bound once in a million, and the seeds are fixed.
CHANCE = 1e-6
CASES = [(9, 0.1), (12, 0.1), (19, 0.05), (41, 0.05), (41, 0.1), (99, 0.01), (120, 0.01), (120, 0.1)]


def bounds(rate: float) -> tuple[float, float]:
    """Return bounds of the number of alarms in TRIALS trials."""
    return stats.binom.ppf(CHANCE, TRIALS, rate), stats.binom.ppf(1 - CHANCE, TRIALS, rate)


def ranks(count: int, rate: float) -> float:
    """The exact rate without ties."""
    return math.floor(Fraction(str(rate)) * (count + 1)) / (count + 1)


def draws(kind: str, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(kind) + sum(shape))
    x = torch.randn(shape, generator=generator)
    return {"normal": x, "heavy": x.exp().pow(3), "ties": x.mul(2).round(), "nearly all tied": (x > 1.6).float()}[kind]


@pytest.mark.parametrize(("count", "rate"), CASES)
@pytest.mark.parametrize("kind", ["normal", "heavy", "ties", "nearly all tied"])
def test_false_alarm_rate_of_exchangeable_scores(kind, count, rate, record_property) -> None:
    scores = draws(kind, TRIALS, count + 1)
    p_values = conformal_p_values(scores[:, :count], scores[:, count:])[:, 0]
    alarms = int((p_values <= rate).sum())
    low, high = bounds(ranks(count, rate))
    for name, value in (("kind", kind), ("images", count), ("rate", rate), ("exact", ranks(count, rate))):
        record_property(name, value)
    for name, value in (("alarms", alarms), ("low", low), ("high", high), ("trials", TRIALS)):
        record_property(name, value)
    assert alarms <= high
    if kind in ("normal", "heavy"):  # without ties the rate is exact
        assert alarms >= low
    assert torch.equal(p_values <= rate, scores[:, count] > conformal_threshold(scores[:, :count], rate))


def test_p_values_of_exchangeable_scores_are_uniform() -> None:
    scores = draws("normal", TRIALS, 12)
    p_values = conformal_p_values(scores[:, :11], scores[:, 11:])[:, 0]
    counts = (p_values * 12).round().long().bincount(minlength=13)[1:]
    assert counts.sum() == TRIALS
    assert stats.chisquare(counts.numpy()).pvalue > CHANCE


def maps_of(count: int, trials: int) -> torch.Tensor:
    """Return maps with dependent pixels: a level per image and noise smoothed over four pixels."""
    generator = torch.Generator().manual_seed(count)
    level = torch.randn(trials, count + 1, 1, 1, generator=generator)
    noise = torch.randn(trials, count + 1, 2, 2, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return level + 0.5 * noise + 0.1 * torch.randn(trials, count + 1, 8, 8, generator=generator)


@pytest.mark.parametrize("rate", [1 - 1e-12, 1 - 1e-10, 1.0, 0.0, 1e-12, -0.5, float("nan"), float("inf")])
def test_rates_outside_0_and_1_raise_and_change_nothing(rate) -> None:
    calibration = Calibration()
    calibration.fit(torch.arange(9.0), torch.arange(9.0), 0.1)
    for use in (images_needed, calibration.set_rate, lambda r: rate_interval(9, r)):
        with pytest.raises(ConfigError, match="must be between 0 and 1") as caught:
            use(rate)
        assert str(caught.value).endswith(f"but got {rate!r}")
    assert calibration.false_alarm_rate == 0.1
    assert calibration.thresholds.tolist() == [8.0, 8.0]


@pytest.mark.parametrize(("count", "rate"), [(14, 0.1), (41, 0.05), (99, 0.01)])
def test_masks_of_normal_images_are_empty_at_the_rate(count, rate) -> None:
    trials = TRIALS // 10
    maps = maps_of(count, trials)
    threshold = conformal_threshold(maps[:, :count].amax((2, 3)), rate)
    marked = int((maps[:, count] > threshold[:, None, None]).any(2).any(1).sum())
    low, high = (stats.binom.ppf(q, trials, ranks(count, rate)) for q in (CHANCE, 1 - CHANCE))
    assert low <= marked <= high


def test_quantile_of_pooled_pixels_exceeds_the_rate() -> None:
    """Five images are not 320 independent observations."""
    maps = maps_of(5, TRIALS // 2)
    threshold = conformal_threshold(maps[:, :5].flatten(1), 0.1)
    rates = (maps[:, 5] > threshold[:, None, None]).double().mean((1, 2))  # of the pixels, not even of the image
    assert rates.mean() - 4 * rates.std() / len(rates) ** 0.5 > 0.1


def test_rate_interval_covers_the_rate_of_one_calibration() -> None:
    """The rate of a calibration on uniform scores is one minus its threshold."""
    for count, rate in ((19, 0.1), (99, 0.01), (120, 0.05)):
        scores = torch.rand(TRIALS, count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
        rates = 1 - conformal_threshold(scores, rate)
        for level in (0.5, 0.9):
            low, high = rate_interval(count, rate, level)
            inside = int(((rates >= low) & (rates <= high)).sum())
            assert bounds(level)[0] <= inside <= bounds(level)[1]


values = st.integers(-3, 3).map(float) | st.floats(-1e3, 1e3, width=32)


@settings(max_examples=60, deadline=None)
@given(st.lists(values, min_size=1, max_size=40), st.lists(values, min_size=1, max_size=5), st.integers(1, 999))
def test_thresholds_agree_with_counted_p_values(calibration, scores, thousandths) -> None:
    count, rate = len(calibration), thousandths / 1000
    exact = Fraction(thousandths, 1000)
    kept, new = torch.tensor(calibration), torch.tensor(scores)
    p_values = conformal_p_values(kept, new).tolist()
    truth = [Fraction(1 + sum(c >= s for c in kept.tolist()), count + 1) for s in new.tolist()]
    assert p_values == [float(p) for p in truth]
    needed = next(n for n in range(1000) if math.ceil((n + 1) * (1 - exact)) <= n)
    assert images_needed(rate) == needed
    if count < needed:
        with pytest.raises(ConfigError, match=f"calibration must have at least {needed} images .* but got {count}"):
            conformal_threshold(kept, rate)
        return
    threshold = conformal_threshold(kept, rate).item()
    assert threshold == sorted(kept.tolist())[math.ceil((count + 1) * (1 - exact)) - 1]
    alarms = [p <= exact for p in truth]
    assert [s > threshold for s in new.tolist()] == alarms
    assert [p <= rate for p in p_values] == alarms  # in floating point too

    fitted = Calibration()
    fitted.fit(kept, kept, rate)
    decision = fitted(new, new[:, None, None])
    assert decision.p_value.tolist() == p_values
    assert decision.is_anomalous.tolist() == alarms
    assert decision.mask[:, 0, 0].tolist() == alarms


@given(st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_advised_rate_is_accepted(count) -> None:
    with pytest.raises(ConfigError) as error:
        conformal_threshold(torch.zeros(count), 1e-4)
    least = float(str(error.value).rsplit(" ", 1)[1])
    assert conformal_threshold(torch.zeros(count), least).item() == 0
    assert conformal_threshold(torch.zeros(count), 1 / (count + 1)).item() == 0


def test_conformal_functions_reject_invalid_arguments() -> None:
    for rate in (0, 1, -0.1, 2, float("nan")):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            images_needed(rate)
    with pytest.raises(ConfigError, match=r"at least 9 images .* but got 8"):
        default_rate(8)
    with pytest.raises(ConfigError, match="level"):
        rate_interval(99, 0.01, 1.0)
    with pytest.raises(ConfigError, match="at least 99 images"):
        rate_interval(98, 0.01)
    with pytest.raises(ShapeError, match="at least one score"):
        conformal_p_values(torch.empty(0), torch.zeros(1))


def test_nan_scores_are_anomalous() -> None:
    calibration = Calibration()
    calibration.fit(torch.arange(9.0), torch.arange(9.0), 0.1)
    decision = calibration(
        torch.tensor([math.nan, math.inf, 3.0]), torch.tensor([math.nan, math.inf, 3.0])[:, None, None]
    )
    assert decision.p_value.tolist() == [0.1, 0.1, 0.7]
    assert decision.is_anomalous.tolist() == decision.mask.flatten().tolist() == [True, True, False]
