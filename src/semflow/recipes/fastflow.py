"""FastFlow (Yu et al., 2021), with and without SANFlow's statistics prediction."""

from dataclasses import replace
from functools import partial

from semflow._validation import Size
from semflow.detectors import STANDARD_NORMAL_PEAK, Detector, Scorer
from semflow.features import available_strides, fitting_strides
from semflow.flows import coupling_stack
from semflow.nn import ConvSubnet
from semflow.objectives import Objective
from semflow.training import TrainingConfig

from .groups import AnyBackbone, Backbone, ConvCouplings, StatisticsPrediction, build_base, build_features
from .registry import recipe


@recipe
def fastflow(
    backbone: AnyBackbone = Backbone("wide_resnet50_2", "hub", (4, 8, 16)),
    image_size: Size = 256,
    statistics: StatisticsPrediction | None = None,
    couplings: ConvCouplings = ConvCouplings(),
    top: float = 0.01,
    training: TrainingConfig = TrainingConfig(500, 32, 1e-3, weight_decay=1e-5),
    seed: int = 0,
) -> Detector:
    """Build FastFlow: one convolutional flow per scale, with one log-det per image; with `statistics` FastFlow+SP.

    From the paper: strides 4, 8 and 16 with 8 blocks for CNNs, one scale with 20 blocks and hidden ratio 0.16 for
    transformers (ViT, DeiT, CaiT); kernels 3x3 and 1x1 in turn (3x3 only for ResNet18); clamp 2; Adam 1e-3 with weight
    decay 1e-5, 500 epochs, batches of 32. The map is the mean over the scales of -exp(-mean_c z^2 / 2), without the
    log-det. Maps of CNNs are normalized over channels and locations without an affine, so the loss is a likelihood of
    the normalized features.

    Changed: cosine schedule. The image score averages the top 1 % of the map (published: its maximum, `top=0`). A
    transformer's last block is used (published: block 7 of DeiT, 40 of CaiT, with a norm). With `statistics` the base
    is one per location, while the log-det stays that of the image, and the map is log p(z) per dimension with the
    predicted variance, minus its maximum on training images.

    Args:
        backbone: timm backbone, its name, or a module of your own, which normalizes its maps itself. A plain
            vision transformer has one stride and uses it once.
        image_size: side of the images in pixels, or (height, width).
        statistics: predict the variance of the base; None uses the standard normal.
        couplings: the flows.
        top: fraction of the highest pixels of the map that the image score averages.
        training: default settings of `semflow.fit`.
        seed: seed of the initial weights and the permutations.

    Example:
        >>> detector = fastflow(Backbone("resnet18", "random", (4, 8, 16)), statistics=StatisticsPrediction())
        >>> detector.flows.events, type(detector.head).__name__
        (('sample', 'sample', 'sample'), 'InverseGammaVariance')
    """
    transformer = False
    if isinstance(backbone, Backbone):
        transformer = len(available_strides(backbone.name)) == 1
        backbone = replace(backbone, strides=fitting_strides(backbone.name, backbone.strides))
    normalize = not (couplings.standardize or transformer)
    features = build_features(backbone, image_size, seed, normalize=normalize)
    base, head, start = build_base(statistics, features.channels, features.strides)
    blocks = couplings.blocks or (20 if transformer else 8)
    subnet = partial(ConvSubnet, hidden_ratio=couplings.hidden_ratio or (0.16 if transformer else 1.0))
    subnets = (subnet,) if couplings.conv3x3_only else (subnet, partial(subnet, kernel=1))
    own = couplings.subnet and (couplings.subnet,)
    stack = partial(coupling_stack, subnets=own or subnets, clamp=2.0, standardize=couplings.standardize, start=start)
    return Detector(
        features,
        [stack(channels, blocks) for channels in features.channels],
        base,
        head,
        objective=Objective(bce=0.0, kl=statistics.kl if statistics else 0.0),
        scorer=Scorer(len(features.channels), top=top, offset=None if statistics else STANDARD_NORMAL_PEAK),
    )
