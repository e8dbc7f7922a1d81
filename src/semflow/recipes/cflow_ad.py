"""CFLOW-AD (Gudovskiy, Ishizaka, Kozuka, WACV 2022), with and without SANFlow's statistics prediction."""

from semflow._validation import Size
from semflow.detectors import Detector, Scorer
from semflow.nn import SinusoidalPosition2d
from semflow.objectives import Objective
from semflow.training import TrainingConfig

from .groups import AnyBackbone, Backbone, Couplings, StatisticsPrediction, build_base, build_features
from .registry import recipe


@recipe
def cflow_ad(
    backbone: AnyBackbone = Backbone("wide_resnet50_2", "hub", (8, 16, 32)),
    image_size: Size = 256,
    statistics: StatisticsPrediction | None = None,
    couplings: Couplings = Couplings(8, 128, "soft", standardize=True),
    top: float = 0.01,
    training: TrainingConfig = TrainingConfig(200, 32, 2e-4, locations=256),
    seed: int = 0,
) -> Detector:
    """Build CFLOW-AD: one conditional flow per scale, applied location by location; with `statistics` CFLOW-AD+SP.

    From the paper and its code: strides 8, 16 and 32, position code of 128 channels, eight blocks with soft permutation
    and clamp 1.9, steps on random groups of 256 locations, loss -log sigmoid(log p / C), Adam 2e-4 with warm-up and
    cosine decay over 25 x 8 epochs, batches of 32. The map sums exp(log p / C - maximum) over the scales, interpolated
    with aligned corners. With `statistics` (SANFlow, section 3.4 and Table S5): prior IG(59.5, 6.05), KL weight 0.2.

    Changed: channels are standardized over the training images, with their log-det; without it, after a few epochs,
    black, white and gray frames score below all good images. The maxima come from training images, not from the test
    set. The image score averages the top 1 % of the map (published: its maximum, `top=0`). With `statistics` the flow
    starts at the prior's variance.

    Args:
        backbone: timm backbone, its name, or a module of your own. A `smoothing` of 3 helps much if epochs
            are few; it is not published.
        image_size: side of the images in pixels, or (height, width).
        statistics: predict the variance of the base; None uses the standard normal.
        couplings: the flows. `standardize=False` is as published.
        top: fraction of the highest pixels of the map that the image score averages.
        training: default settings of `semflow.fit`.
        seed: seed of the initial weights and the permutations.

    Example:
        >>> cflow_ad(Backbone("resnet18", "random"), couplings=Couplings(2, 16)).provenance.training.locations
        256
    """
    features = build_features(backbone, image_size, seed)
    base, head, start = build_base(statistics, features.channels, features.strides)
    return Detector(
        features,
        couplings.flows(features.channels, start),
        base,
        head,
        SinusoidalPosition2d(couplings.position_channels),
        Objective(bce=0.0, kl=statistics.kl if statistics else 0.0, squash=True),
        Scorer(len(features.channels), top=top, align_corners=True),
        score_log_det=True,
    )
