"""PaDiM (Defard, Setkov, Loesch, Audigier, ICPR 2021 workshops)."""

from typing import Literal

from semflow._validation import Size
from semflow.bases import PositionGaussian
from semflow.detectors import Detector, Scorer
from semflow.features import ConcatenatedMaps, RandomChannels
from semflow.flows import Identity
from semflow.training import TrainingConfig

from .groups import AnyBackbone, Backbone, build_features
from .registry import recipe


@recipe
def padim(
    backbone: AnyBackbone = Backbone("resnet18", "hub", (4, 8, 16)),
    image_size: Size = 256,
    channels: int = 100,
    form: Literal["density", "distance"] = "distance",
    shrinkage: float = 0.01,
    blur: float = 4.0,
    top: float = 0.0,
    training: TrainingConfig = TrainingConfig(epochs=0),
    seed: int = 0,
) -> Detector:
    """Build PaDiM: a normal distribution of random channels at each location, fitted in one pass without training.

    From the paper: ResNet18 features of strides 4, 8 and 16 on the grid of the finest, 100 random channels; the map is
    the Mahalanobis distance, upsampled and blurred with a Gaussian of 4 pixels, and the image score its maximum.

    Changed: whole images, not their centers. anomalib's PaDiM adds 0.01001 to variances instead of 0.01; with
    `shrinkage=0.01001` maps and scores equal its own.

    Args:
        backbone: timm backbone, its name, or a module of your own.
        image_size: side of the images in pixels, or (height, width). Images must look alike: a
            location has its own distribution.
        channels: number of random channels, or all if there are fewer.
        form: `distance`, or `density` for a map of -log p per channel.
        shrinkage: added to the variances of each location.
        blur: standard deviation in pixels of the Gaussian that smooths the map; 0 for none.
        top: fraction of the highest pixels of the map that the image score averages; 0 for the maximum.
        training: default settings of `semflow.fit`, without epochs.
        seed: seed of the random channels.

    Example:
        >>> detector = padim(Backbone("resnet18", "random", (4, 8, 16)))
        >>> detector.features.channels, detector.trainable()
        ((100,), [])
    """
    features = ConcatenatedMaps(build_features(backbone, image_size, seed), "nearest")
    reduced = RandomChannels(features, min(channels, features.channels[0]), seed)
    scorer = Scorer(1, top=top, aggregate="sum", offset=0.0 if form == "distance" else None, blur=blur)
    return Detector(reduced, [Identity()], [PositionGaussian(form, shrinkage)], scorer=scorer)
