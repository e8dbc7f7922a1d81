"""MSFlow (Zhou et al., TNNLS 2024), with and without SANFlow's statistics prediction."""

from functools import partial

from semflow.bases import Variance, base_and_head
from semflow.detectors import Detector, Scorer, Training
from semflow.errors import ConfigError
from semflow.features import TimmFeatures
from semflow.flows import (
    CrossScaleCoupling,
    GlobalAffine,
    HardPermutation,
    PyramidFlow,
    PyramidSequence,
    ScaleWise,
    coupling_stack,
)
from semflow.nn import ConvSubnet, FusionSubnet, SinusoidalPosition2d
from semflow.objectives import Objective

from .recipe import recipe

__all__ = ["msflow"]


@recipe
def msflow(
    backbone: str = "wide_resnet50_2",
    weights: str = "hub",
    strides: tuple[int, ...] = (4, 8, 16),
    image_size: int = 512,
    statistics: bool = False,
    variance: Variance = "predicted",
    blocks: tuple[int, ...] = (2, 5, 8),
    position_channels: int = 64,
    standardize: bool = False,
    smoothing: int = 3,
    reduction: int = 2,
    mode: float = 0.1,
    kl: float = 0.2,
    top: float = 0.03,
    seed: int = 0,
) -> Detector:
    """MSFlow: a convolutional flow a scale, deeper where it is coarser, and a flow that fuses the scales.

    From the paper and its code: images of 512 px, strides 4, 8 and 16, each map averaged over 3x3 locations at every
    second one; 2, 5 and 8 blocks with normalised 3x3 subnets, position code of 64 channels and clamp 1.9; one fusion
    coupling of both halves (clamp 1.9, arctangent); the joint likelihood of all scales; Adam 1e-4, 100 epochs, batches
    of 8, gradients of the summed loss clipped at norm 2. The map adds the scales' exp(log p(z) / C - maximum), aligned
    at the corners; the image score is that of the top 3 % of the map that multiplies them. Changed: a cosine schedule
    (published: steps down at the end); the maxima come from training images (published: of each image itself, so that
    an image which is anomalous all over looks normal); the pooling does not count the padding.

    Args:
        backbone, weights, strides: of `semflow.features.TimmFeatures`.
        image_size: side in pixels that data sets give it.
        statistics, variance, mode: put a semantic-aware base under the flow, see `semflow.bases.base_and_head`.
        blocks, position_channels: couplings of each scale, fine to coarse; channels of the position code.
        standardize, smoothing, reduction: standardise each channel; kernel and stride of the features' pooling.
        kl, top: weight of the divergence from the variance's prior; share of the pixels that the image score averages.
        seed: of the weights' start and the permutations.

    Raises:
        ConfigError: an argument does not exist or does not go with the others.

    Example:
        >>> detector = msflow("resnet18", "random", blocks=(1, 1, 2))
        >>> detector.flows.joint, detector.scorer.image_aggregate
        (True, 'product')
    """
    features = TimmFeatures(
        backbone, weights, strides, image_size=image_size, smoothing=smoothing, reduction=reduction, seed=seed
    )
    channels = features.channels
    if len(blocks) != len(channels):
        raise ConfigError(f"blocks must be {len(channels)} numbers, one a stride, but got {blocks}")
    dimensions = sum(c * (image_size // s) ** 2 for c, s in zip(channels, features.strides, strict=True))
    base, head, start = base_and_head(variance, channels, features.strides, statistics=statistics, mode=mode)
    subnet = partial(ConvSubnet, norm=True)
    stack = partial(coupling_stack, subnets=(subnet,), context_channels=position_channels, standardize=standardize)
    fusion = partial(CrossScaleCoupling, channels, FusionSubnet, clamp=1.9)
    flows: list[PyramidFlow] = [
        ScaleWise(stack(c, n) for c, n in zip(channels, blocks, strict=True)),
        ScaleWise([HardPermutation(c) for c in channels]),
        fusion(swap=True),
        fusion(),
    ]
    if statistics:
        flows.append(ScaleWise([GlobalAffine(c, start=start) for c in channels]))
    return Detector(
        features,
        PyramidSequence(flows),
        base,
        head,
        SinusoidalPosition2d(position_channels),
        Objective(bce=0.0, kl=kl),
        Scorer(len(channels), top=top, image_aggregate="product", align_corners=True),
        plan=Training(epochs=100, batch_size=8, learning_rate=1e-4, clip=2.0 / dimensions),
        image_size=image_size,
    )
