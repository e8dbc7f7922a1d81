"""Steps after gradient training: fit the bases, the constants of the score and the calibration."""

from collections.abc import Sized
from dataclasses import replace
from typing import Any, cast

from torch.utils.data import Dataset

from semflow._validation import counted
from semflow.detectors import Detector
from semflow.detectors.calibration import check_categories
from semflow.detectors.encoded import Encoded
from semflow.detectors.inputs import check_size
from semflow.detectors.normal_scores import NormalScores
from semflow.errors import DataError

from .augmenting import Copies
from .cache import NormalImages
from .categories import categories_of
from .cutting import bounded
from .regions import describe_images


def check_sizes(detector: Detector, dataset: Dataset[Any], calibration: Dataset[Any] | None = None) -> None:
    """Raise ShapeError if the first image of a data set has another size than a recipe's detector.

    How the images of the data set are resized, whether they have regions, and their categories, which those of the
    calibration must equal, are recorded in the detector's provenance.
    """
    describe_images(detector, dataset)
    if calibration is not None:
        check_categories(categories_of(calibration), detector.provenance.categories)
    for name, given in (("dataset", dataset), ("calibration", calibration)):
        of_one_size = detector.provenance.recipe and detector.provenance.tiles is None
        if given is not None and of_one_size and len(cast(Sized, given)):
            check_size(given[0].image, detector.provenance, name)


def check_number_of_images(detector: Detector, images: int) -> None:
    """Raise DataError if there are fewer images than a base must be fitted to.

    >>> from semflow.recipes import Backbone, padim
    >>> check_number_of_images(padim(Backbone("test_efficientnet", "random", (4, 8, 16)), 32), 2)
    Traceback (most recent call last):
        ...
    semflow.errors.DataError: dataset must hold at least 3 images for a PositionGaussian, but got 2
    """
    for base in detector.fitted_bases.values():
        if images < base.least_images:
            raise DataError(
                f"dataset must hold at least {counted(base.least_images, 'image')} for a {type(base).__name__}, but "
                f"got {images}"
            )


def settle(detector: Detector, normal: NormalImages, copies: Copies | None = None) -> NormalScores:
    """Fit bases and the constants of the score, in eval mode; all processes get the base of the first.

    Bases are fitted to the changed `copies` of each image, too.
    """
    processes = normal.processes
    detector.eval()
    if processes.count > 1 and detector.fitted_bases:
        normal.fill()  # the first pass uses collectives
    batches = Encoded(detector, normal) if detector.fitted_bases else normal
    with bounded(detector, normal.tiles):
        detector.fit_base(batches, processes.stream, copies, None if normal.tiles is None else normal.tiles.images)
    if processes.count > 1:  # sums on GPUs may round differently in each process
        state = processes.first(lambda: {name: x.cpu() for name, x in detector.base.state_dict().items()})
        detector.base.load_state_dict(state)
    normal.keep = False
    return detector.fit_score(batches, processes.gather)


def remember_images(detector: Detector, normal: NormalImages) -> None:
    """Add the fingerprints of the images to those of the detector."""
    both = dict.fromkeys(detector.provenance.fingerprints + normal.fingerprints())
    detector.provenance = replace(detector.provenance, fingerprints=tuple(both))
