"""PatchCore (Roth, Pemula, Zepeda, Schoelkopf, Brox, Gehler, CVPR 2022)."""

from semflow._validation import Size
from semflow.bases import Memory
from semflow.detectors import Detector, Scorer
from semflow.features import ConcatenatedMaps
from semflow.flows import Identity
from semflow.training import TrainingConfig

from .groups import AnyBackbone, Backbone, build_features
from .registry import recipe


@recipe
def patchcore(
    backbone: AnyBackbone = Backbone("wide_resnet50_2", "hub", (8, 16)),
    image_size: Size = 256,
    coreset: float | int = 0.1,
    projection: int | None = None,
    smoothing: int = 3,
    image_neighbors: int | None = 9,
    blur: float = 4.0,
    training: TrainingConfig = TrainingConfig(epochs=0),
    seed: int = 0,
) -> Detector:
    """Build PatchCore: distances to a coreset of the features of normal images, collected without training.

    From the paper: WideResNet50 features of strides 8 and 16 on the grid of the finer, averaged over 3 x 3 locations; a
    k-center coreset of 10 % of them; the map is the distance to the nearest, upsampled and blurred with a Gaussian of 4
    pixels, and the image score the largest distance, reweighted by the 9 neighbors of the nearest.

    Changed: whole images, not their centers. The map is enlarged by repetition, as in anomalib, and the coreset chosen
    without a projection of the features. With the same coreset, maps and scores equal those of anomalib's PatchCore.

    Args:
        backbone: timm backbone, its name, or a module of your own.
        image_size: side of the images in pixels, or (height, width).
        coreset: share of the locations that are stored, such as 0.01 for PatchCore-1, or their number.
        projection: dimensions of a random projection in which the coreset is chosen; None chooses it in all.
        smoothing: odd side of the window that features are averaged over; 1 for none.
        image_neighbors: neighbors that reweight the image score; None takes the maximum of the map.
        blur: standard deviation in pixels of the Gaussian that smooths the map; 0 for none.
        training: default settings of `semflow.fit`, without epochs.
        seed: seed of the coreset.

    Example:
        >>> detector = patchcore(Backbone("resnet18", "random", (8, 16)), coreset=0.01)
        >>> detector.features.channels, detector.bases[0].size
        ((384,), 0.01)
    """
    features = ConcatenatedMaps(build_features(backbone, image_size, seed), "bilinear", smoothing)
    memory = Memory("distance", size=coreset, projection=projection, image_neighbors=image_neighbors, seed=seed)
    scorer = Scorer(1, top=0.0, aggregate="sum", offset=0.0, blur=blur, interpolation="nearest")
    return Detector(features, [Identity()], [memory], scorer=scorer)
