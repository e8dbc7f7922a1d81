"""SANFlow (Kim, Baik, Kim: SANFlow: Semantic-Aware Normalizing Flow for Anomaly Detection, NeurIPS 2023)."""

import math
from typing import Any, Literal

import torch

from ..bases import Base, SemanticAware, StandardNormal
from ..detectors import Detector, Scorer, Training
from ..errors import ConfigError
from ..features import TimmFeatures
from ..flows import AffineCoupling, FlowSequence, GlobalAffine, HardPermutation, Standardize
from ..functional import Form
from ..nn import (
    FixedVariance,
    InverseGammaVariance,
    LearnedVariance,
    PredictedMean,
    SinusoidalPosition2d,
    StatisticsNetwork,
    VarianceHead,
)
from ..objectives import Objective
from ..synthesis import CutPaste

__all__ = ["ABLATIONS", "sanflow"]

Variance = Literal["predicted", "learned", "fixed", "unit"]

ABLATIONS: dict[str, dict[str, Any]] = {
    "1a": {"synthesis": False, "variance": "unit", "bce": 0.0, "kl": 0.0},
    "1b": {"bce": 0.0, "kl": 0.0},
    "1c": {"kl": 0.0},
    "1d": {"bce": 0.0},
    "2a": {"synthesis": False},
    "3a": {"variance": "fixed"},
    "3b": {"variance": "fixed", "predicted_mean": True},
    "3c": {"predicted_mean": True},
}
"""The models of the paper's Tables 4 to 6 as arguments of `sanflow`; 2a is CFLOW-AD+SP of Table S5."""


def sanflow(
    backbone: str = "wide_resnet50_2",
    weights: str = "hub",
    strides: tuple[int, ...] = (8, 16, 32),
    image_size: int = 256,
    blocks: int = 8,
    position_channels: int = 512,
    standardize: bool = True,
    smoothing: int = 3,
    synthesis: bool = True,
    min_change: float = 0.0,
    margin: float = 1.0,
    variance: Variance = "predicted",
    mode: float = 0.1,
    predicted_mean: bool = False,
    statistics_stride: int = 8,
    form: Form = "exact",
    mask_mode: Literal["nearest", "max"] = "max",
    guard: int = 1,
    bce: float = 1.0,
    kl: float = 0.2,
    score_log_det: bool = True,
    top: float = 0.01,
    seed: int = 0,
) -> Detector:
    """SANFlow: a conditional flow a scale, to Gaussians of predicted variance with mean 0 (normal) or 1 (anomalous).

    From the paper: three scales, eight blocks, position code of 512 channels, prior IG(59.5, 6.05), margin 1, weights
    1.0 (BCE) and 0.2 (KL), Adam, 80 epochs. Changed: channels are standardised and 3x3-pooled; the flow starts at the
    prior's variance instead of far from it; h is run once, at the finest scale's stride; every location that an anomaly
    touches is marked, and its neighbours, whose features have seen it, are left out of training; the score adds the
    log-det (Eq. 3) and takes the mean of the top 1 % of the map; the likelihood has its C/2; batches are of 4, one
    image of each kind; the learning rate is 2e-3 with a warm-up and a cosine to the end (paper: 5e-4, fixed).

    Args:
        backbone, weights, strides: of `semflow.features.TimmFeatures`; for a ViT repeat its stride, (16, 16, 16).
        image_size: side in pixels that data sets give it.
        blocks, position_channels: L and D.
        standardize, smoothing: standardise each channel over the training data; kernel of the features' pooling.
        synthesis: train with synthetic anomalies; without them there is no BCE.
        min_change: of a pasted patch, see `semflow.synthesis.CutPaste`: background on background is no anomaly.
        margin: the anomalous mean.
        variance: `predicted` by h; or one `learned` variance a scale, one `fixed` at `mode`, or `unit`, the standard
            normal of a flow without statistics prediction (and so without anomalous mean).
        mode: of the variance's prior, where the flow starts.
        predicted_mean: predict both means as well.
        statistics_stride: pixels that h folds into one location; 1 is the paper's h, at 64 times the cost.
        form: of the likelihood, see `semflow.functional.normal_log_prob`.
        mask_mode, guard: of `semflow.detectors.Detector`: how an anomaly marks a location, and its neighbours.
        bce, kl: lambda_1 and lambda_2.
        score_log_det, top: of the score.
        seed: of the weights' start and the permutations.

    Returns:
        An untrained `Detector`.

    Raises:
        ConfigError: an argument does not exist or does not go with the others.

    Example:
        >>> detector = sanflow("resnet18", "random", blocks=2, position_channels=16, **ABLATIONS["2a"])
        >>> detector.synthesis is None, detector.objective.kl
        (True, 0.2)
    """
    arguments: dict[str, Any] = dict(locals())
    if variance == "unit" and (synthesis or predicted_mean):
        raise ConfigError(
            "variance unit is one standard normal for all: it needs synthesis=False and predicted_mean=False"
        )
    start = 1.0 if variance == "unit" else math.sqrt(mode)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = TimmFeatures(backbone, weights, strides, image_size=image_size, smoothing=smoothing, seed=seed)
        base: Base = StandardNormal() if variance == "unit" else SemanticAware(anomaly_mean=margin, form=form)
        return Detector(
            features,
            flows=[_flow(c, blocks, position_channels, standardize, start) for c in features.channels],
            base=base,
            head=_head(variance, predicted_mean, mode, statistics_stride, len(features.channels)),
            position=SinusoidalPosition2d(position_channels),
            objective=Objective(bce=bce, kl=kl),
            scorer=Scorer(len(features.channels), top=top),
            synthesis=CutPaste(min_change=min_change) if synthesis else None,
            score_log_det=score_log_det,
            mask_mode=mask_mode,
            guard=guard,
            plan=Training(epochs=80, batch_size=4, learning_rate=2e-3, schedule="cosine"),
            image_size=image_size,
            config={"recipe": "sanflow", "arguments": arguments},
        )


def _flow(channels: int, blocks: int, position_channels: int, standardize: bool, start: float) -> FlowSequence:
    """L blocks of coupling, global affine and permutation; the last affine brings the latents to the prior's scale."""
    layers: list[torch.nn.Module] = [Standardize(channels)] if standardize else []
    for block in range(blocks):
        layers += [
            AffineCoupling(channels, context_channels=position_channels),
            GlobalAffine(channels, start=start if block == blocks - 1 else 1.0),
            HardPermutation(channels),
        ]
    return FlowSequence(layers)


def _head(variance: Variance, predicted_mean: bool, mode: float, stride: int, scales: int) -> VarianceHead | None:
    if variance == "predicted":
        return InverseGammaVariance(StatisticsNetwork(4 if predicted_mean else 2, stride=stride), mode=mode)
    if predicted_mean and variance == "fixed":
        return PredictedMean(StatisticsNetwork(2, stride=stride), mode)
    if variance == "fixed":
        return FixedVariance(mode)
    if variance == "learned":
        return LearnedVariance(scales, start=mode)
    if variance == "unit":
        return None
    raise ConfigError(f"variance must be predicted, learned, fixed or unit, but got {variance!r}")
