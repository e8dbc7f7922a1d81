"""A memory of a flow's latents on textures, and of features on objects (the library's own detector)."""

from semflow._validation import Size
from semflow.bases import Memory, SemanticGaussian
from semflow.detectors import Detector, Scorer
from semflow.errors import ConfigError
from semflow.features import GroupedMaps
from semflow.flows import OptionalFlow
from semflow.nn import FixedVariance, SinusoidalPosition2d
from semflow.objectives import Objective
from semflow.synthesis import CutPaste
from semflow.training import TrainingConfig

from .groups import AnyBackbone, Backbone, Couplings, build_features
from .registry import recipe

VARIANCE = 0.1  # of the latents around the two means of training, the mode of SANFlow's prior


@recipe
def memory_flow(
    backbone: AnyBackbone = Backbone("wide_resnet50_2", "hub", (4, 8, 16)),
    image_size: Size = 320,
    couplings: Couplings = Couplings(4, 64, "hard", standardize=True),
    memory: int = 6000,
    synthesis: CutPaste | None = CutPaste(),
    blur: float = 4.0,
    top: float = 0.01,
    training: TrainingConfig = TrainingConfig(batch_size=4, learning_rate=2e-3, steps=160),
    seed: int = 0,
) -> Detector:
    """Build a detector by distances to a memory of normal images, in the space where defects show best.

    Features of strides 4, 8, and 8 with 16 concatenated lie on the grid of stride 8. At each of these scales, a
    k-center coreset of normal locations is the base, and normality is its nearest-neighbor log-density. Scales are
    standardized by the training images, each scored without its own vectors, and summed.

    A flow per scale is trained with synthetic anomalies, like SANFlow's with a fixed variance. Distances between its
    latents separate defects far better than distances between features on textures, and far worse on objects, whose
    features it stretches unevenly. `semflow.fit` leaves it out there, see `choose_flow`.

    The recipe needs three maps, of strides 4, 8 and 16. The benchmarks describe the study behind its defaults.

    Args:
        backbone: timm backbone, its name, or a module of your own.
        image_size: side of the images in pixels, or (height, width). Images of 256 pixels gain
            from the larger default, too.
        couplings: the flows' blocks and position code.
        memory: vectors that each scale stores.
        synthesis: synthetic anomalies; None trains the flow on normal images alone.
        blur: standard deviation in pixels of the Gaussian that smooths the map; 0 for none.
        top: fraction of the highest pixels of the map that the image score averages.
        training: default settings of `semflow.fit`. The flow trains for 160 steps whatever the number of images, or
            for a quarter of them if it is left out by then.
        seed: seed of the initial weights, the permutations and the coresets.

    Example:
        >>> detector = memory_flow(Backbone("resnet18", "random", (4, 8, 16)), couplings=Couplings(2, 16))
        >>> detector.features.channels, detector.flows[0].used
        ((64, 128, 384), True)
    """
    maps = build_features(backbone, image_size, seed)
    if len(maps.channels) != 3:
        raise ConfigError(f"backbone must have 3 maps, of strides 4, 8 and 16, but got strides {tuple(maps.strides)}")
    features = GroupedMaps(maps, ((0,), (1,), (1, 2)), grid=1)
    prior = SemanticGaussian()
    return Detector(
        features,
        [OptionalFlow(flow) for flow in couplings.flows(features.channels, VARIANCE**0.5)],
        [Memory("nearest", size=memory, seed=seed, prior=prior) for _ in features.channels],
        FixedVariance(VARIANCE),
        SinusoidalPosition2d(couplings.position_channels),
        Objective(bce=1.0, kl=0.0),
        Scorer(len(features.channels), top=top, aggregate="sum", blur=blur, standardize=True),
    )
