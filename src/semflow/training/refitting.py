"""Fitting the bases and the constants of a trained detector again, with its flows as they are."""

from collections.abc import Sized
from typing import Any, cast

from torch.utils.data import Dataset

from semflow._defaults import own_defaults
from semflow.detectors import Detector
from semflow.detectors.inputs import check_precision
from semflow.errors import ConfigError

from .cache import NormalImages
from .categories import categories_of, check_counts
from .config import TrainingConfig
from .crossing import Crossing, is_trained
from .cutting import TrainingTiles, take_tiles
from .distributed import ALONE, Processes
from .frames import record_frames, score_frames
from .holdout import CROSS, Given, calibrate, given_calibration, held_out_batches, hold_out
from .labels import refuse_anomalous
from .loading import batches, checked, dealt_batches
from .settling import check_number_of_images, check_sizes, remember_images, settle


@own_defaults()
def refit(
    detector: Detector,
    dataset: Dataset[Any],
    *,
    calibration: Given = None,
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
        calibration: as in `fit`; `cross` only for a detector without trained flows.
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
    dataset = checked(dataset)
    calibration = given_calibration(calibration)
    tiles = take_tiles(detector, None, calibration)
    if calibration == CROSS and is_trained(detector):
        raise ConfigError(
            f"calibration must be a number or other images for a trained flow, but got {CROSS!r}; train it with fit, "
            "which trains more models"
        )
    if not allow_anomalous:
        refuse_anomalous(dataset)
    dataset, held_out = hold_out(dataset, calibration, seed, false_alarm_rate)
    if held_out is not None:
        check_counts(held_out, false_alarm_rate)
        known = detector.provenance.fingerprints
        for _ in held_out_batches(held_out, known, 1 if tiles else batch_size, workers, processes, allow_anomalous):
            pass
    check_sizes(detector, dataset, held_out)
    check_number_of_images(detector, len(cast(Sized, dataset)))
    cut = None if tiles is None else TrainingTiles(dataset, tiles, workers, allow_anomalous)
    dataset = dataset if cut is None else checked(cut)
    parts = dealt_batches(len(cast(Sized, dataset)), batch_size, processes)
    loader = batches(dataset, batch_size, workers, parts)
    normal = NormalImages(
        detector.feature_maps, loader, detector.device, cache_bytes, processes, allow_anomalous, tiles=cut
    )
    found = settle(detector, normal)
    frames = score_frames(detector, found, normal)
    remember_images(detector, normal)
    if held_out is not None:
        calibrate(
            detector, held_out, false_alarm_rate, batch_size=batch_size, workers=workers, processes=processes,
            allow_anomalous=allow_anomalous,
        )  # fmt: skip
    elif calibration == CROSS:
        training = TrainingConfig(epochs=0, batch_size=batch_size, seed=seed)
        crossing = Crossing(detector, dataset, training, lambda model, *_: model, workers)
        found = found if crossing.alone(detector) else crossing.scores(detector, normal)
        detector.calibrate_on(found, false_alarm_rate, CROSS, categories_of(crossing.dataset))
    record_frames(detector, found, frames)
    return detector
