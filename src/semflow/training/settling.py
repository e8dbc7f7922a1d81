"""Steps after gradient training: fit the bases, the constants of the score and the calibration."""

import numbers
from collections.abc import Sized
from dataclasses import replace
from typing import Any, cast

from torch.utils.data import Dataset

from semflow._defaults import own_defaults
from semflow._validation import counted
from semflow.detectors import Detector
from semflow.detectors.conformal import check_count
from semflow.detectors.inputs import check_precision, check_size
from semflow.detectors.passes import NormalScores
from semflow.errors import DataError

from .augmenting import Copies
from .cache import NormalImages
from .cutting import TrainingTiles, bounded, take_tiles
from .distributed import ALONE, Processes
from .frames import record_frames, score_frames
from .holdout import calibrate, held_out_batches, hold_out
from .labels import refuse_anomalous
from .loading import batches, checked, dealt_batches
from .regions import describe_images


@own_defaults()
def refit(
    detector: Detector,
    dataset: Dataset[Any],
    *,
    calibration: float | int | Dataset[Any] | None = None,
    false_alarm_rate: float | None = None,
    batch_size: int = 8,
    workers: int = 0,
    seed: int = 0,
    cache_bytes: int = 2**31,
    processes: Processes = ALONE,
    allow_anomalous: bool = False,
) -> Detector:
    """Fit the bases and the constants of the score again, and return the detector in eval mode; flows stay as they are.

    Bases that are not a `FittedBase` do not change either. An existing calibration is replaced or removed.

    Args:
        detector: trained detector; it is changed in place.
        dataset: normal images.
        calibration: as in `fit`.
        false_alarm_rate: as in `fit`.
        batch_size: images per batch.
        workers: processes that load images.
        seed: seed of the draw of held-out images; that of `fit` holds out the same images of the same data set.
        cache_bytes: as in `fit`.
        processes: processes that share the images.
        allow_anomalous: as in `fit`.

    Raises:
        DataError: If the detector was trained on one of the images of the calibration, or one is labeled anomalous.

    Example:
        >>> import torch
        >>> from semflow.bases import Memory
        >>> from semflow.data import Sample
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> good = [Sample(torch.rand(3, 32, 32), 0, None, f"{i}.png") for i in range(4)]
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32)
        >>> detector.set_base([Memory()])
        >>> refit(detector, good).bases[0].vectors.shape
        torch.Size([64, 32])
    """
    check_precision(detector.reference)
    tiles = take_tiles(detector, None)
    dataset = checked(dataset)
    if calibration is not None and not isinstance(calibration, numbers.Real):
        calibration = checked(calibration, "calibration")
    if not allow_anomalous:
        refuse_anomalous(dataset)
    dataset, held_out = hold_out(dataset, calibration, seed, false_alarm_rate)
    if held_out is not None:
        check_count(len(cast(Sized, held_out)), false_alarm_rate)
        known = detector.provenance.fingerprints
        for _ in held_out_batches(held_out, known, 1 if tiles else batch_size, workers, processes, allow_anomalous):
            pass
    check_sizes(detector, dataset, held_out)
    check_number_of_images(detector, len(cast(Sized, dataset)))
    cut = None if tiles is None else TrainingTiles(dataset, tiles, workers, allow_anomalous)
    dataset = dataset if cut is None else checked(cut)
    parts = dealt_batches(len(cast(Sized, dataset)), batch_size, processes)
    loader = batches(dataset, batch_size, workers, parts)
    normal = NormalImages(detector.feature_maps, loader, detector.device, cache_bytes, processes, allow_anomalous, cut)
    found = settle(detector, normal)
    frames = score_frames(detector, found, normal)
    remember_images(detector, normal)
    if held_out is not None:
        calibrate(
            detector, held_out, false_alarm_rate, batch_size=batch_size, workers=workers, processes=processes,
            allow_anomalous=allow_anomalous,
        )  # fmt: skip
    record_frames(detector, found, frames)
    return detector


def check_sizes(detector: Detector, dataset: Dataset[Any], calibration: Dataset[Any] | None = None) -> None:
    """Raise ShapeError if the first image of a data set has another size than a recipe's detector.

    How the images of the data set are resized, and whether they have regions, is recorded in the detector's provenance.
    """
    describe_images(detector, dataset)
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
    with bounded(detector, normal.tiles):
        detector.fit_base(normal, processes.stream, copies, None if normal.tiles is None else normal.tiles.images)
    if processes.count > 1:  # sums on GPUs may round differently in each process
        state = processes.first(lambda: {name: x.cpu() for name, x in detector.base.state_dict().items()})
        detector.base.load_state_dict(state)
    normal.keep = False
    return detector.fit_score(normal, processes.gather)


def remember_images(detector: Detector, normal: NormalImages) -> None:
    """Add the fingerprints of the images to those of the detector."""
    both = dict.fromkeys(detector.provenance.fingerprints + normal.fingerprints())
    detector.provenance = replace(detector.provenance, fingerprints=tuple(both))
