"""FastFlow (Yu et al., 2021), with and without SANFlow's statistics prediction."""

from functools import partial

from semflow.bases import Variance, base_and_head
from semflow.detectors import STANDARD_NORMAL_PEAK, Detector, Scorer, Training
from semflow.errors import ConfigError
from semflow.features import TimmFeatures, available_strides, fitting_strides
from semflow.flows import coupling_stack
from semflow.functional import Form
from semflow.nn import ConvSubnet
from semflow.objectives import Objective

from .recipe import recipe

__all__ = ["fastflow"]


@recipe
def fastflow(
    backbone: str = "wide_resnet50_2",
    weights: str = "hub",
    strides: tuple[int, ...] = (4, 8, 16),
    image_size: int = 256,
    statistics: bool = False,
    variance: Variance = "predicted",
    steps: int = 0,
    hidden_ratio: float = 0.0,
    conv3x3_only: bool = False,
    standardize: bool = False,
    smoothing: int = 1,
    mode: float = 0.1,
    form: Form = "exact",
    kl: float = 0.2,
    top: float = 0.01,
    seed: int = 0,
) -> Detector:
    """FastFlow: a convolutional flow a scale, whose log-det is the sample's; with `statistics` FastFlow+SP (Table S5).

    From the paper: strides 4, 8 and 16 with 8 steps for CNNs, one scale with 20 steps and hidden ratio 0.16 for
    transformers (ViT, DeiT, CaiT); kernels 3x3 and 1x1 in turn (`conv3x3_only` for ResNet18); clamp 2; Adam 1e-3 with
    weight decay 1e-5, 500 epochs, batches of 32; the map is the mean over scales of -exp(-mean_c z^2 / 2), without the
    log-det. Maps of CNNs are normalised over channels and locations without an affine, so the loss is a likelihood (of
    the normalised features). Changed: a cosine schedule; the image score is that of the top 1 % of the map (published:
    its maximum, `top=0`); a transformer's last block is taken (published: block 7 of DeiT, 40 of CaiT, normed). With
    `statistics` the base is one of locations, while the log-det stays the sample's; the map then has log p(z) per
    dimension with its predicted variance, less its maximum on training images.

    Args:
        backbone, weights, strides: of `semflow.features.TimmFeatures`; a plain vision transformer has one stride, which
            is taken once.
        image_size: side in pixels that data sets give it.
        statistics: put a semantic-aware base under the flow; without it the base is the standard normal.
        variance, mode, form: of `semflow.bases.base_and_head`, where `statistics` is true.
        steps, hidden_ratio: couplings a scale, and hidden channels of their subnets for each channel of a half; 0 for
            the paper's: 8 and 1, of a transformer 20 and 0.16.
        conv3x3_only: no 1x1 subnets in between.
        standardize: standardise each channel over the training data, log-det counted, instead of normalising each map.
        smoothing: kernel of a pooling of the features, 1 for none.
        kl: weight of the divergence from the variance's prior.
        top: fraction of the map's highest pixels that the image score is the mean of.
        seed: of the weights' start and the permutations.

    Raises:
        ConfigError: an argument does not exist or does not go with the others.

    Example:
        >>> detector = fastflow("resnet18", "random", statistics=True)
        >>> detector.flows.events, type(detector.head).__name__
        (('sample', 'sample', 'sample'), 'InverseGammaVariance')
    """
    if steps < 0:
        raise ConfigError(f"steps must be at least 1, or 0 for the paper's, but got {steps}")
    transformer = len(available_strides(backbone)) == 1
    strides = fitting_strides(backbone, strides)
    features = TimmFeatures(
        backbone, weights, strides, image_size=image_size, smoothing=smoothing, seed=seed,
        normalize=not (standardize or transformer),
    )  # fmt: skip
    base, head, start = base_and_head(
        variance, features.channels, features.strides, statistics=statistics, mode=mode, form=form
    )
    steps = steps or (20 if transformer else 8)
    subnet = partial(ConvSubnet, hidden_ratio=hidden_ratio or (0.16 if transformer else 1.0))
    subnets = (subnet,) if conv3x3_only else (subnet, partial(subnet, kernel=1))
    return Detector(
        features,
        [coupling_stack(c, steps, subnets, clamp=2.0, standardize=standardize, start=start) for c in features.channels],
        base,
        head,
        objective=Objective(bce=0.0, kl=kl),
        scorer=Scorer(len(features.channels), top=top, offset=None if statistics else STANDARD_NORMAL_PEAK),
        plan=Training(epochs=500, batch_size=32, learning_rate=1e-3, weight_decay=1e-5),
        image_size=image_size,
    )  # fmt: skip
