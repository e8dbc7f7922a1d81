"""SANFlow (Kim, Baik, Kim: Semantic-Aware Normalizing Flow, NeurIPS 2023)."""

import math
from typing import Any, Literal

import torch

from ..bases import SemanticAware
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

__all__ = ["sanflow"]

Variance = Literal["predicted", "fixed", "learned"]


def sanflow(
    backbone: str = "wide_resnet50_2",
    weights: str = "hub",
    strides: tuple[int, ...] = (8, 16, 32),
    image_size: int = 256,
    blocks: int = 8,
    position_channels: int = 512,
    smoothing: int = 3,
    standardize: bool = True,
    synthesis: bool = True,
    variance: Variance = "predicted",
    predicted_mean: bool = False,
    fixed_variance: float = 0.1,
    margin: float = 1.0,
    start_variance: float = 0.1,
    form: Form = "exact",
    statistics_stride: int = 4,
    bce: float = 1.0,
    kl: float = 0.2,
    squash: bool = False,
    top: float = 0.01,
    score_log_det: bool = False,
    seed: int = 0,
) -> Detector:
    """SANFlow: conditional flows to Gaussians of mean 0 or 1 whose variance is predicted at every location."""
    arguments: dict[str, Any] = dict(locals())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = TimmFeatures(backbone, weights, strides, smoothing=smoothing)
        return Detector(
            features,
            flows=[
                _flow(channels, blocks, position_channels, standardize, start_variance)
                for channels in features.channels
            ],
            base=SemanticAware(anomaly_mean=margin, form=form),
            head=_head(variance, predicted_mean, fixed_variance, statistics_stride, len(strides)),
            position=SinusoidalPosition2d(position_channels),
            objective=Objective(bce=bce if synthesis else 0.0, kl=kl, squash=squash),
            scorer=Scorer(len(strides), top=top),
            synthesis=CutPaste() if synthesis else None,
            score_log_det=score_log_det,
            plan=Training(epochs=80, batch_size=8, learning_rate=5e-4),
            image_size=image_size,
            config={"recipe": "sanflow", "arguments": arguments},
        )


def _flow(channels: int, blocks: int, position_channels: int, standardize: bool, variance: float) -> FlowSequence:
    layers: list[torch.nn.Module] = [Standardize(channels)] if standardize else []
    for block in range(blocks):
        layers += [
            AffineCoupling(channels, context_channels=position_channels),
            GlobalAffine(channels, start=math.sqrt(variance) if block == blocks - 1 else 1.0),
            HardPermutation(channels),
        ]
    return FlowSequence(layers)


def _head(variance: Variance, predicted_mean: bool, fixed: float, stride: int, scales: int) -> VarianceHead:
    if variance == "predicted":
        return InverseGammaVariance(StatisticsNetwork(4 if predicted_mean else 2, stride=stride))
    if predicted_mean:
        return PredictedMean(StatisticsNetwork(2, stride=stride), fixed)
    if variance == "fixed":
        return FixedVariance(fixed)
    if variance == "learned":
        return LearnedVariance(scales)
    raise ConfigError(f"variance must be predicted, fixed or learned, but got {variance!r}")
