"""CS-Flow (Rudolph, Wehrbein, Rosenhahn, Wandt, WACV 2022), with and without SANFlow's statistics prediction."""

from functools import partial
from typing import Any

from semflow._validation import Size
from semflow.detectors import Detector, Scorer
from semflow.features import ImagePyramid
from semflow.flows import (
    CrossScaleCoupling,
    GlobalAffine,
    HardPermutation,
    PyramidFlow,
    PyramidSequence,
    ScaleWise,
    Standardize,
)
from semflow.nn import CrossScaleConvs
from semflow.objectives import Objective
from semflow.training import TrainingConfig

from .groups import AnyBackbone, Backbone, PairedCouplings, StatisticsPrediction, build_base, build_features
from .registry import recipe


@recipe
def cs_flow(
    backbone: AnyBackbone = Backbone("tf_efficientnet_b5", "hub", (32,)),
    image_size: Size = 768,
    levels: int = 3,
    statistics: StatisticsPrediction | None = None,
    couplings: PairedCouplings = PairedCouplings(4, 1024),
    top: float = 1.0,
    training: TrainingConfig = TrainingConfig(240, 16, 2e-4, "constant", weight_decay=1e-5, clip=1.0),
    seed: int = 0,
) -> Detector:
    """Build CS-Flow: one flow of three sizes of the image, whose couplings see all of them.

    From the paper: images of 768 px, a half and a quarter of it, EfficientNet-B5 features of stride 32; four pairs of
    couplings with random permutations, cross-scale convolutions with 1024 hidden channels, kernel 3 and in the last
    pair 5, clamp 3 (arctangent); Adam 2e-4 with weight decay 1e-5, 240 epochs, batches of 16, gradients clipped at norm
    1; the loss is the joint likelihood of all scales.

    Changed: the map is the mean over the scales of -log p(z) per dimension, without the log-det, and the image score
    the mean of the map (published: the map of the finest scale, and the mean over all latents, which weights scales by
    their locations). The layer is the last of its stride, which is what timm offers (published: block 36, 304
    channels). Smaller images are averaged, not sampled. Channels are standardized, with their log-det. Adam has torch's
    eps (published: 1e-4).

    Args:
        backbone: timm backbone, its name, or a module of your own.
        image_size: side of the images in pixels, or (height, width).
        levels: number of image sizes, each half the previous one.
        statistics: predict the variance of the base; None uses the standard normal.
        couplings: the flow.
        top: fraction of the highest pixels of the map that the image score averages.
        training: default settings of `semflow.fit`.
        seed: seed of the initial weights and the permutations.

    Example:
        >>> detector = cs_flow(Backbone("resnet18", "random", (32,)), couplings=PairedCouplings(1, 16))
        >>> detector.features.strides, detector.flows.joint
        ((32, 64, 128), True)
    """
    features = ImagePyramid(build_features(backbone, image_size, seed, levels=levels), levels)
    channels = features.channels
    base, head, start = build_base(statistics, channels, features.strides)
    flows: list[PyramidFlow] = [ScaleWise([Standardize(c) for c in channels])] if couplings.standardize else []
    for block in range(couplings.blocks):
        kernel = 5 if block == couplings.blocks - 1 else 3
        subnet: Any = couplings.subnet or partial(CrossScaleConvs, hidden=couplings.hidden, kernel=kernel)
        flows += [
            ScaleWise([HardPermutation(c) for c in channels]),
            CrossScaleCoupling(channels, subnet),
            CrossScaleCoupling(channels, subnet, swap=True),
        ]
    if statistics:
        flows.append(ScaleWise([GlobalAffine(c, start=start) for c in channels]))
    return Detector(
        features,
        PyramidSequence(flows),
        base,
        head,
        objective=Objective(bce=0.0, kl=statistics.kl if statistics else 0.0),
        scorer=Scorer(len(channels), top=top, aggregate="sum"),
    )
