"""CS-Flow (Rudolph, Wehrbein, Rosenhahn, Wandt, WACV 2022), with and without SANFlow's statistics prediction."""

from functools import partial

from semflow._validation import at_least
from semflow.bases import Variance, base_and_head
from semflow.detectors import Detector, Scorer, Training
from semflow.features import ImagePyramid, TimmFeatures
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

from .recipe import recipe

__all__ = ["cs_flow"]


@recipe
def cs_flow(
    backbone: str = "tf_efficientnet_b5",
    weights: str = "hub",
    strides: tuple[int, ...] = (32,),
    image_size: int = 768,
    levels: int = 3,
    statistics: bool = False,
    variance: Variance = "predicted",
    blocks: int = 4,
    hidden: int = 1024,
    standardize: bool = True,
    mode: float = 0.1,
    kl: float = 0.2,
    top: float = 1.0,
    seed: int = 0,
) -> Detector:
    """CS-Flow: one flow of three sizes of the image, whose couplings look across them.

    From the paper: images of 768 px, a half and a quarter of it, EfficientNet-B5 features of stride 32; four pairs of
    couplings with random permutations, cross-scale convolutions with 1024 hidden channels, kernel 3 and in the last
    pair 5, clamp 3 (arctangent); Adam 2e-4 with weight decay 1e-5, 240 epochs, batches of 16, gradients clipped at norm
    1; the loss is the joint likelihood of all scales. Changed: the map is the mean over the scales of -log p(z) per
    dimension, without the log-det, and the image score the mean of the map (published: the map of the finest scale, and
    the mean over all latents, where a scale weighs as it has locations); the layer (published: block 36, 304 channels;
    timm offers the last of its stride); smaller images are averaged, not sampled; channels are standardised, log-det
    counted; Adam has torch's eps (published: 1e-4).

    Args:
        backbone, weights, strides: of `semflow.features.TimmFeatures`.
        image_size: side in pixels that data sets give it.
        levels: sizes of the image, each half the one before.
        statistics: put a semantic-aware base under the flow; without it the base is the standard normal.
        variance, mode: of `semflow.bases.base_and_head`, where `statistics` is true.
        blocks, hidden: pairs of couplings, and channels of their subnets.
        standardize: standardise each channel over the training data.
        kl: weight of the divergence from the variance's prior.
        top: fraction of the map's highest pixels that the image score is the mean of.
        seed: of the weights' start and the permutations.

    Raises:
        ConfigError: an argument does not exist or does not go with the others.

    Example:
        >>> detector = cs_flow("resnet18", "random", blocks=1, hidden=16)
        >>> detector.features.strides, detector.flows.joint
        ((32, 64, 128), True)
    """
    at_least(1, blocks=blocks)
    features = ImagePyramid(TimmFeatures(backbone, weights, strides, image_size=image_size, seed=seed), levels)
    channels = features.channels
    base, head, start = base_and_head(variance, channels, features.strides, statistics=statistics, mode=mode)
    flows: list[PyramidFlow] = [ScaleWise([Standardize(c) for c in channels])] if standardize else []
    for block in range(blocks):
        subnet = partial(CrossScaleConvs, hidden=hidden, kernel=5 if block == blocks - 1 else 3)
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
        objective=Objective(bce=0.0, kl=kl),
        scorer=Scorer(len(channels), top=top, aggregate="sum"),
        plan=Training(epochs=240, batch_size=16, learning_rate=2e-4, weight_decay=1e-5, schedule="constant", clip=1.0),
        image_size=image_size,
    )
