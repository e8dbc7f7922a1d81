"""SPADE (Cohen and Hoshen, 2020)."""

from semflow._validation import Size
from semflow.bases import Gallery
from semflow.detectors import Detector, Scorer
from semflow.features import ConcatenatedMaps
from semflow.flows import Identity
from semflow.training import TrainingConfig

from .groups import AnyBackbone, Backbone, build_features
from .registry import recipe


@recipe
def spade(
    backbone: AnyBackbone = Backbone("wide_resnet50_2", "hub", (4, 8, 16, 32)),
    image_size: Size = 256,
    gallery: int = 50,
    blur: float = 4.0,
    training: TrainingConfig = TrainingConfig(epochs=0),
    seed: int = 0,
) -> Detector:
    """Build SPADE: distances to the locations of the most similar normal images, which are stored without training.

    From the paper: WideResNet50 features; the 50 normal images whose averaged deepest features are nearest; the map is
    the squared distance of the features of strides 4, 8 and 16 to the nearest location of these images, upsampled and
    blurred with a Gaussian of 4 pixels, and the image score the mean squared distance of the deepest features to those
    of the 50 images.

    Changed: whole images, not their centers. All locations of all images are stored, and the gallery is searched for
    every location, so it needs the most memory and time of all recipes.

    Args:
        backbone: timm backbone, its name, or a module of your own, whose last map describes the image.
        image_size: side of the images in pixels, or (height, width).
        gallery: number of similar images, or all if there are fewer.
        blur: standard deviation in pixels of the Gaussian that smooths the map; 0 for none.
        training: default settings of `semflow.fit`, without epochs.
        seed: not used, since nothing is random.

    Example:
        >>> detector = spade(Backbone("resnet18", "random", (4, 8, 16, 32)))
        >>> detector.features.channels, detector.bases[0].descriptor
        ((960,), 512)
    """
    maps = build_features(backbone, image_size, seed)
    # Of repeated locations the mean is that of the deepest map itself.
    features = ConcatenatedMaps(maps, "nearest")
    scorer = Scorer(1, top=0.0, aggregate="sum", offset=0.0, blur=blur)
    return Detector(features, [Identity()], [Gallery(maps.channels[-1], gallery)], scorer=scorer)
