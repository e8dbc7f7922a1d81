"""MSFlow (Zhou et al., TNNLS 2024), with and without SANFlow's statistics prediction."""

from dataclasses import replace
from functools import partial

from semflow._validation import Size, height_and_width
from semflow.detectors import Detector, Provenance, Scorer
from semflow.errors import ConfigError
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
from semflow.training import TrainingConfig

from .groups import AnyBackbone, Backbone, PyramidCouplings, StatisticsPrediction, build_base, build_features
from .registry import recipe


@recipe
def msflow(
    backbone: AnyBackbone = Backbone("wide_resnet50_2", "hub", (4, 8, 16), smoothing=3, reduction=2),
    image_size: Size = 512,
    statistics: StatisticsPrediction | None = None,
    couplings: PyramidCouplings = PyramidCouplings((2, 5, 8), 64),
    top: float = 0.03,
    training: TrainingConfig = TrainingConfig(100, 8, 1e-4, clip=2.0),
    seed: int = 0,
) -> Detector:
    """Build MSFlow: one convolutional flow per scale, deeper at coarse scales, and a flow that fuses the scales.

    From the paper and its code: images of 512 px, strides 4, 8 and 16, each map averaged over 3x3 locations at every
    second one; 2, 5 and 8 blocks with normalized 3x3 subnets, position code of 64 channels and clamp 1.9; one fusion
    coupling of both halves (clamp 1.9, arctangent); the joint likelihood of all scales; Adam 1e-4, 100 epochs, batches
    of 8, gradients of the summed loss clipped at norm 2. The map adds exp(log p(z) / C - maximum) over the scales,
    interpolated with aligned corners; the image score is that of the top 3 % of the map that multiplies the scales.

    Changed: cosine schedule (published: steps down at the end). The maxima come from training images (published: from
    each image itself, so an image that is anomalous everywhere looks normal). The pooling ignores the padding.

    Args:
        backbone: timm backbone, its name, or a module of your own.
        image_size: side of the images in pixels, or (height, width).
        statistics: predict the variance of the base; None uses the standard normal.
        couplings: the flows.
        top: fraction of the pixels that the image score averages.
        training: default settings of `semflow.fit`. `clip` is that of the published, summed loss.
        seed: seed of the initial weights and the permutations.

    Example:
        >>> backbone = Backbone("resnet18", "random", (4, 8, 16))
        >>> msflow(backbone, couplings=PyramidCouplings((1, 1, 2))).flows.joint
        True
    """
    features = build_features(backbone, image_size, seed)
    channels = features.channels
    if len(couplings.blocks) != len(channels):
        raise ConfigError(f"couplings.blocks must be {len(channels)} numbers, but got {couplings.blocks}")
    base, head, start = build_base(statistics, channels, features.strides)
    stack = partial(
        coupling_stack,
        subnets=(couplings.subnet or partial(ConvSubnet, norm=True),),
        context_channels=couplings.position_channels,
        standardize=couplings.standardize,
    )
    fusion = partial(CrossScaleCoupling, channels, FusionSubnet, clamp=1.9)
    flows: list[PyramidFlow] = [
        ScaleWise(stack(c, n) for c, n in zip(channels, couplings.blocks, strict=True)),
        ScaleWise([HardPermutation(c) for c in channels]),
        fusion(swap=True),
        fusion(),
    ]
    if statistics:
        flows.append(ScaleWise([GlobalAffine(c, start=start) for c in channels]))
    detector = Detector(
        features,
        PyramidSequence(flows),
        base,
        head,
        SinusoidalPosition2d(couplings.position_channels),
        Objective(bce=0.0, kl=statistics.kl if statistics else 0.0),
        Scorer(len(channels), top=top, image_aggregate="product", align_corners=True),
    )
    if training.clip is not None:
        height, width = height_and_width(image_size)
        dimensions = sum(c * (height // s) * (width // s) for c, s in zip(channels, features.strides, strict=True))
        detector.provenance = Provenance(training=replace(training, clip=training.clip / dimensions))
    return detector
