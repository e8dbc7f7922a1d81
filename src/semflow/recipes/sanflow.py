"""SANFlow (Kim, Baik, Kim: SANFlow: Semantic-Aware Normalizing Flow for Anomaly Detection, NeurIPS 2023)."""

from typing import Literal

from semflow.bases import Variance, base_and_head
from semflow.detectors import Detector, Scorer, Training
from semflow.features import TimmFeatures
from semflow.flows import coupling_stack
from semflow.functional import Form
from semflow.nn import SinusoidalPosition2d
from semflow.objectives import Objective
from semflow.synthesis import CutPaste

from .ablations import ablation_arguments
from .recipe import recipe

__all__ = ["sanflow"]


@recipe
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
    statistics_source: Literal["image", "features"] = "image",
    statistics_stride: int = 8,
    form: Form = "exact",
    mask_mode: Literal["nearest", "max"] = "max",
    guard: int = 1,
    bce: float = 1.0,
    kl: float = 0.2,
    score_log_det: bool = True,
    top: float = 0.01,
    ablation: str | None = None,
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
        backbone, weights, strides, image_size: of `TimmFeatures`; for a ViT repeat its stride, (16, 16, 16).
        blocks, position_channels: L and D.
        standardize, smoothing: standardise each channel over the training data; kernel of the features' pooling.
        synthesis, min_change: train with synthetic anomalies, see `semflow.synthesis.CutPaste`.
        margin, variance, mode, predicted_mean: of `semflow.bases.base_and_head`: the anomalous mean, where the variance
            comes from, the mode of its prior (where the flow starts), and whether the means are predicted too.
        statistics_source, statistics_stride: what h looks at, and the pixels that it folds into one location (at most
            the finest stride); image and 1 are the paper's h, at 64 times the cost of 8.
        form, bce, kl: of the likelihood, lambda_1 and lambda_2; mask_mode, guard, score_log_det, top: see `Detector`.
        ablation: `1a` to `3c`, a model of Tables 4 to 6: it overrides the arguments of `semflow.recipes.ABLATIONS`.
        seed: of the weights' start and the permutations.

    Raises:
        ConfigError: an argument does not exist or does not go with the others.

    Example:
        >>> detector = sanflow(backbone="resnet18", weights="random", blocks=2, position_channels=16, ablation="2a")
        >>> detector.synthesis is None, detector.objective.kl
        (True, 0.2)
    """
    if ablation is not None:
        return sanflow(**{**locals(), **ablation_arguments(ablation), "ablation": None})
    features = TimmFeatures(backbone, weights, strides, image_size=image_size, smoothing=smoothing, seed=seed)
    base, head, start = base_and_head(
        variance, features.channels, features.strides, margin=margin, mode=mode, form=form, anomalies=synthesis,
        predicted_mean=predicted_mean, stride=statistics_stride, source=statistics_source,
    )  # fmt: skip
    flows = [coupling_stack(c, blocks, context_channels=position_channels, standardize=standardize, start=start)
             for c in features.channels]  # fmt: skip
    return Detector(
        features,
        flows,
        base,
        head,
        SinusoidalPosition2d(position_channels),
        Objective(bce=bce, kl=kl),
        Scorer(len(features.channels), top=top),
        synthesis=CutPaste(min_change=min_change) if synthesis else None,
        score_log_det=score_log_det,
        mask_mode=mask_mode, guard=guard,
        plan=Training(epochs=80, batch_size=4, learning_rate=2e-3, schedule="cosine"),
        image_size=image_size,
    )  # fmt: skip
