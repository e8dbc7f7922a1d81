"""DifferNet (Rudolph, Wandt, Rosenhahn, WACV 2021), with and without SANFlow's statistics prediction."""

from functools import partial

from torch import nn

from semflow._validation import Size
from semflow.detectors import Detector, Scorer
from semflow.features import ImagePyramid, PooledViews
from semflow.flows import AffineCoupling, FlowSequence, GlobalAffine, HardPermutation, Standardize
from semflow.nn import PerceptronSubnet
from semflow.objectives import Objective
from semflow.training import TrainingConfig

from .groups import AnyBackbone, Backbone, PairedCouplings, StatisticsPrediction, build_base, build_features
from .registry import recipe


@recipe
def differnet(
    backbone: AnyBackbone = Backbone("resnet18", "hub", (32,)),
    image_size: Size = 448,
    levels: int = 3,
    views: int = 8,
    statistics: StatisticsPrediction | None = None,
    couplings: PairedCouplings = PairedCouplings(8, 2048),
    training: TrainingConfig = TrainingConfig(192, 24, 2e-4, "constant", weight_decay=1e-5),
    seed: int = 0,
) -> Detector:
    """Build DifferNet: one flow of the image's pooled features. It scores images and does not localize.

    From the paper: images of 448 px, a half and a quarter of it, globally averaged features; eight pairs of couplings
    with random permutations, subnets of three hidden layers of 2048 units, clamp 3 (arctangent); Adam 2e-4 with weight
    decay 1e-5, 192 epochs, batches of 24; the score averages over rotated views of the image.

    Changed: the backbone (timm has no AlexNet). Training and test use the same evenly spaced rotations (published: 4
    random ones in training, 64 in test), so that features are computed once and scores are deterministic. Smaller
    images are averaged, not sampled. Channels are standardized, with their log-det, and the score adds the log-det.
    Adam has torch's betas and eps (published: 0.8, 0.8 and 1e-4). With `statistics` the network h sees the pooled
    features of each view.

    Args:
        backbone: timm backbone, its name, or a module of your own.
        image_size: side of the images in pixels, or (height, width).
        levels: number of image sizes, each half the previous one.
        views: number of rotations.
        statistics: predict the variance of the base; None uses the standard normal.
        couplings: the flow.
        training: default settings of `semflow.fit`.
        seed: seed of the initial weights and the permutations.

    Example:
        >>> detector = differnet(Backbone("resnet18", "random", (32,)), couplings=PairedCouplings(2, 16))
        >>> detector.features.channels, detector.localizes
        ((1536,), False)
    """
    features = PooledViews(ImagePyramid(build_features(backbone, image_size, seed, levels=levels), levels), views)
    base, head, start = build_base(statistics, features.channels, source="features", neighbors=False)
    (channels,) = features.channels
    subnet = couplings.subnet or partial(PerceptronSubnet, hidden=couplings.hidden)
    coupling = partial(AffineCoupling, channels, subnet, clamp=3.0, clamp_form="atan", gain=1.0)
    layers: list[nn.Module] = [Standardize(channels)] if couplings.standardize else []
    for _ in range(couplings.blocks):
        layers += [HardPermutation(channels), coupling(), coupling(swap=True)]
    return Detector(
        features,
        [FlowSequence([*layers, GlobalAffine(channels, start=start)])],
        base,
        head,
        objective=Objective(bce=0.0, kl=statistics.kl if statistics else 0.0),
        scorer=Scorer(1, top=1.0, aggregate="sum"),
        score_log_det=True,
        localizes=False,
    )
