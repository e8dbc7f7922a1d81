"""Choice of a base and its variance head, from a standard normal to SANFlow's predicted statistics."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from semflow._validation import checked, positive
from semflow.errors import ConfigError
from semflow.functional import Form
from semflow.nn import (
    FeatureStatisticsNetwork,
    FixedVariance,
    InverseGammaVariance,
    LearnedVariance,
    PredictedMean,
    StatisticsNetwork,
    VarianceHead,
)

from .semantic import Base, SemanticGaussian, StandardNormal

Variance = Literal["predicted", "learned", "fixed", "unit"]
"""Source of the variance, see `base_and_head`."""


class BaseAndHead(NamedTuple):
    """A base with its variance head (or None), and the standard deviation at which latents should start.

    Example:
        >>> base, head, start = base_and_head("learned", (40, 112))
        >>> type(base).__name__, type(head).__name__, start**2
        ('SemanticGaussian', 'LearnedVariance', 0.1...)
    """

    base: Base
    head: VarianceHead | None
    start: float


@checked
def base_and_head(
    variance: Variance = "predicted",
    channels: Sequence[int] = (),
    strides: Sequence[int] = (),
    *,
    margin: float = 1.0,
    mode: float = 0.1,
    form: Form = "exact",
    predicted_mean: bool = False,
    anomalies: bool = False,
    stride: int = 8,
    source: Literal["image", "features"] = "image",
    neighbors: bool = True,
) -> BaseAndHead:
    """Make the base and the variance head of a detector.

    Args:
        variance: `predicted` by the network h at every location (inverse-gamma), `learned` as one number per scale,
            `fixed` at `mode`, or `unit` for a standard normal without a head.
        channels: Channels of the feature maps, one per scale.
        strides: Strides of the feature maps, one per scale.
        margin: The anomalous mean; the normal mean is 0.
        mode: Mode of the variance's prior, where training starts.
        form: Form of the likelihood, see `semflow.functional.normal_log_prob`.
        predicted_mean: Predict shifts of both means too.
        anomalies: Whether training marks anomalous locations, which a standard normal does not support.
        stride: Pixels that h on the image folds into one location, at most the finest of `strides`.
        source: Input of h: the `image`, once for all scales, or the `features` of each scale.
        neighbors: Whether h on features also sees neighboring locations.

    Example:
        >>> base, head, start = base_and_head("fixed", channels=(40, 112), mode=0.25)
        >>> type(base).__name__, head, start
        ('SemanticGaussian', FixedVariance(0.25), 0.5)
    """
    positive(mode=mode)
    if margin == 0:
        raise ConfigError("margin must not be 0, the normal mean, but got 0")
    if variance == "unit" and anomalies:
        raise ConfigError("variance must not be unit with synthetic anomalies, but got unit; train without them")
    if predicted_mean and variance not in ("predicted", "fixed"):
        raise ConfigError(f"variance must be predicted or fixed with predicted_mean, but got {variance!r}")
    if variance == "unit":
        return BaseAndHead(StandardNormal(), None, 1.0)

    def networks(outputs: int) -> StatisticsNetwork | list[FeatureStatisticsNetwork]:
        if source == "image":
            return StatisticsNetwork(outputs, stride=min(stride, *strides) if strides else stride)
        return [FeatureStatisticsNetwork(c, outputs, kernel=3 if neighbors else 1) for c in channels]

    head: VarianceHead
    if variance == "predicted":
        head = InverseGammaVariance(networks(4 if predicted_mean else 2), mode=mode)
    elif variance == "learned":
        head = LearnedVariance(len(channels), start=mode)
    else:
        head = PredictedMean(networks(2), mode) if predicted_mean else FixedVariance(mode)
    return BaseAndHead(SemanticGaussian(anomaly_mean=margin, form=form), head, math.sqrt(mode))
