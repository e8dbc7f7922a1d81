"""CFLOW-AD (Gudovskiy, Ishizaka, Kozuka, WACV 2022), with and without SANFlow's statistics prediction."""

from typing import Literal

from semflow.bases import Variance, base_and_head
from semflow.detectors import Detector, Scorer, Training
from semflow.features import TimmFeatures
from semflow.flows import coupling_stack
from semflow.functional import Form
from semflow.nn import SinusoidalPosition2d
from semflow.objectives import Objective

from .recipe import recipe

__all__ = ["cflow_ad"]


@recipe
def cflow_ad(
    backbone: str = "wide_resnet50_2",
    weights: str = "hub",
    strides: tuple[int, ...] = (8, 16, 32),
    image_size: int = 256,
    statistics: bool = False,
    variance: Variance = "predicted",
    blocks: int = 8,
    position_channels: int = 128,
    permutation: Literal["hard", "soft"] = "soft",
    locations: int = 256,
    standardize: bool = False,
    smoothing: int = 1,
    mode: float = 0.1,
    form: Form = "exact",
    kl: float = 0.2,
    top: float = 0.01,
    seed: int = 0,
) -> Detector:
    """CFLOW-AD: a conditional flow a scale, location by location; with `statistics` CFLOW-AD+SP (SANFlow's model 2a).

    From the paper and its code: strides 8, 16 and 32, position code of 128 channels, eight blocks with soft permutation
    and clamp 1.9, steps on random groups of 256 locations, loss -log sigmoid(log p / C), Adam 2e-4 with a warm-up and a
    cosine over 25 x 8 epochs, batches of 32; the map sums the scales' exp(log p / C - maximum), aligned at the corners.
    Changed: the maxima come from training images, not from the test set; the image score is the mean of the top 1 % of
    the map (published: its maximum, `top=0`). With `statistics` (SANFlow, section 3.4 and Table S5): the prior
    IG(59.5, 6.05), KL weight 0.2, and the flow starts at the prior's variance.

    Args:
        backbone, weights, strides: of `semflow.features.TimmFeatures`.
        image_size: side in pixels that data sets give it.
        statistics: put a semantic-aware base under the flow; without it the base is the standard normal.
        variance, mode, form: of `semflow.bases.base_and_head`, where `statistics` is true.
        blocks, position_channels: number of couplings a scale, and channels of the position code.
        permutation: `soft` rotates the channels, `hard` permutes them and is faster.
        locations: a step; 0 takes whole maps.
        standardize, smoothing: standardise each channel over the training data, and pool features; both help much
            where epochs are few, and neither is published.
        kl: weight of the divergence from the variance's prior.
        top: fraction of the map's highest pixels that the image score is the mean of.
        seed: of the weights' start and the permutations.

    Raises:
        ConfigError: an argument does not exist or does not go with the others.

    Example:
        >>> detector = cflow_ad("resnet18", "random", blocks=2, position_channels=16, statistics=True)
        >>> type(detector.base).__name__, detector.plan.locations
        ('SemanticGaussian', 256)
    """
    features = TimmFeatures(backbone, weights, strides, image_size=image_size, smoothing=smoothing, seed=seed)
    base, head, start = base_and_head(
        variance, features.channels, features.strides, statistics=statistics, mode=mode, form=form
    )
    return Detector(
        features,
        [
            coupling_stack(
                c,
                blocks,
                context_channels=position_channels,
                permutation=permutation,
                standardize=standardize,
                start=start,
            )
            for c in features.channels
        ],
        base,
        head,
        SinusoidalPosition2d(position_channels),
        Objective(bce=0.0, kl=kl, squash=True),
        Scorer(len(features.channels), top=top, align_corners=True),
        score_log_det=True,
        plan=Training(epochs=200, batch_size=32, learning_rate=2e-4, locations=locations or None),
        image_size=image_size,
    )
