"""DifferNet (Rudolph, Wandt, Rosenhahn, WACV 2021), with and without SANFlow's statistics prediction."""

from functools import partial

from torch import nn

from semflow._validation import at_least
from semflow.bases import Variance, base_and_head
from semflow.detectors import Detector, Scorer, Training
from semflow.features import ImagePyramid, PooledViews, TimmFeatures
from semflow.flows import AffineCoupling, FlowSequence, GlobalAffine, HardPermutation, Standardize
from semflow.nn import PerceptronSubnet
from semflow.objectives import Objective

from .recipe import recipe

__all__ = ["differnet"]


@recipe
def differnet(
    backbone: str = "resnet18",
    weights: str = "hub",
    strides: tuple[int, ...] = (32,),
    image_size: int = 448,
    levels: int = 3,
    views: int = 8,
    statistics: bool = False,
    variance: Variance = "predicted",
    blocks: int = 8,
    hidden: int = 2048,
    standardize: bool = True,
    mode: float = 0.1,
    kl: float = 0.2,
    seed: int = 0,
) -> Detector:
    """DifferNet: one flow of the image's pooled features; it scores images and does not localise.

    From the paper: images of 448 px, a half and a quarter of it, globally averaged features; eight pairs of couplings
    with random permutations, subnets of three hidden layers of 2048 units, clamp 3 (arctangent); Adam 2e-4 with weight
    decay 1e-5, 192 epochs, batches of 24; the score averages over rotated views of the image. Changed: the backbone
    (timm has no AlexNet); the same evenly spaced rotations in training and test (published: 4 random ones in training,
    64 in test), so that features are computed once and a score has no chance in it; smaller images are averaged, not
    sampled; channels are standardised, log-det counted; the score adds the log-det; Adam has torch's betas and eps
    (published: 0.8, 0.8 and 1e-4). With `statistics` h looks at the pooled features of each view.

    Args:
        backbone, weights, strides: of `semflow.features.TimmFeatures`.
        image_size: side in pixels that data sets give it.
        levels: sizes of the image, each half the one before.
        views: rotations.
        statistics: put a semantic-aware base under the flow; without it the base is the standard normal.
        variance, mode: of `semflow.bases.base_and_head`, where `statistics` is true.
        blocks, hidden: pairs of couplings, and units of the subnets' layers.
        standardize: standardise each channel over the training data.
        kl: weight of the divergence from the variance's prior.
        seed: of the weights' start and the permutations.

    Raises:
        ConfigError: an argument does not exist or does not go with the others.

    Example:
        >>> detector = differnet("resnet18", "random", blocks=2, hidden=16)
        >>> detector.features.channels, detector.localises
        ((1536,), False)
    """
    at_least(1, blocks=blocks)
    backbone_maps = TimmFeatures(backbone, weights, strides, image_size=image_size, seed=seed)
    features = PooledViews(ImagePyramid(backbone_maps, levels), views)
    base, head, start = base_and_head(
        variance, features.channels, statistics=statistics, mode=mode, source="features", neighbors=False
    )
    (channels,) = features.channels
    coupling = partial(
        AffineCoupling, subnet=partial(PerceptronSubnet, hidden=hidden), clamp=3.0, clamp_form="atan", gain=1.0
    )
    layers: list[nn.Module] = [Standardize(channels)] if standardize else []
    for _ in range(blocks):
        layers += [HardPermutation(channels), coupling(channels), coupling(channels, swap=True)]
    return Detector(
        features,
        [FlowSequence([*layers, GlobalAffine(channels, start=start)])],
        base,
        head,
        objective=Objective(bce=0.0, kl=kl),
        scorer=Scorer(1, top=1.0, aggregate="sum"),
        score_log_det=True,
        localises=False,
        plan=Training(epochs=192, batch_size=24, learning_rate=2e-4, weight_decay=1e-5, schedule="constant"),
        image_size=image_size,
    )
