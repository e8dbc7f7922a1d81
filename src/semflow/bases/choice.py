"""Statistics prediction as one switch: what a recipe puts under its flow, from none at all to SANFlow's."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from semflow._validation import checked
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

__all__ = ["BaseAndHead", "Variance", "base_and_head"]

Variance = Literal["predicted", "learned", "fixed", "unit"]


class BaseAndHead(NamedTuple):
    """A base, the variance head that it needs or None, and the scale at which latents should start.

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
    statistics: bool = True,
    margin: float = 1.0,
    mode: float = 0.1,
    form: Form = "exact",
    predicted_mean: bool = False,
    anomalies: bool = False,
    stride: int = 8,
    source: Literal["image", "features"] = "image",
    neighbors: bool = True,
) -> BaseAndHead:
    """The base and the head of a detector, by the source of the variance.

    Args:
        variance: `predicted` by the network h at every location (inverse-gamma); one `learned` variance a scale; one
            `fixed` at `mode`; or `unit`: the standard normal of a flow without statistics prediction.
        channels, strides: of the feature maps, one a scale.
        statistics: False for the standard normal, whatever h might predict.
        margin: the anomalous mean; the normal one is 0.
        mode: of the variance's prior, where training starts.
        form: of the likelihood, see `semflow.functional.normal_log_prob`.
        predicted_mean: predict shifts of both means as well.
        anomalies: whether training marks locations as anomalous, which takes a base that knows them.
        stride: pixels that h folds into one location of its output, if it looks at the image; never more than the
            finest of `strides`.
        source: what h looks at: the `image`, once for all scales, or the `features` of each scale.
        neighbors: whether h on features looks at a location's neighbors too.

    Raises:
        ConfigError: an argument does not exist or does not go with the others.

    Example:
        >>> base, head, start = base_and_head("fixed", channels=(40, 112), mode=0.25)
        >>> type(base).__name__, head, start
        ('SemanticGaussian', FixedVariance(0.25), 0.5)
    """
    if variance not in get_args(Variance):
        raise ConfigError(f"variance must be {', '.join(get_args(Variance))}, but got {variance!r}")
    if not mode > 0:
        raise ConfigError(f"mode must be a positive variance, but got {mode}")
    if margin == 0:
        raise ConfigError("margin must not be 0: it is how far the anomalous mean is from the normal one, but got 0")
    if source not in ("image", "features"):
        raise ConfigError(f"source must be image or features, but got {source!r}")
    if not statistics:
        if variance not in ("predicted", "unit"):
            raise ConfigError(f"variance {variance} belongs to statistics=True, but statistics is False")
        if form != "exact":
            raise ConfigError(f"form {form} belongs to statistics=True, but statistics is False")
        variance = "unit"
    if variance == "unit" and anomalies:
        raise ConfigError("variance unit is one standard normal for all: train it without synthetic anomalies")
    if predicted_mean and variance not in ("predicted", "fixed"):
        raise ConfigError(f"predicted_mean needs variance predicted or fixed, but got {variance!r}")
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
