"""Normal images held out of training for calibration."""

import numbers
from collections.abc import Iterable, Iterator, Sized
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
from torch.utils.data import Dataset, Subset

from semflow._defaults import own_defaults
from semflow._devices import to_device
from semflow.data import Batch
from semflow.detectors import Detector
from semflow.detectors.calibration import check_categories
from semflow.detectors.conformal import images_needed
from semflow.detectors.inputs import check_size
from semflow.errors import ConfigError
from semflow.files import hash_parts

from .cache import unseen
from .categories import categories_of, check_counts, positions_by_category
from .distributed import ALONE, Processes
from .labels import normal_only, refuse_anomalous
from .loading import batches, checked, dealt_batches

LEAST, MOST = images_needed(0.1), images_needed(0.01)
CROSS: Literal["cross"] = "cross"
"""Calibration on the training images, see `Crossing`."""
Given = float | int | Literal["cross"] | Dataset[Any] | None
"""Argument `calibration` of `fit`."""


def automatic_count(images: int) -> int:
    """Return the default number of images to hold out: a fifth, at most 99, or 0 if a fifth is fewer than 9.

    >>> [automatic_count(n) for n in (10, 44, 45, 60, 320, 2000)]
    [0, 0, 9, 12, 64, 99]
    """
    fifth = min(images // 5, MOST)
    return fifth if fifth >= LEAST else 0


def automatic_calibration(
    images: int, false_alarm_rate: float | None = None, free: bool = False
) -> int | Literal["cross"] | None:
    """Return the default calibration: a number of images to hold out, `cross`, or None for too few images.

    These are `automatic_count` images if they allow the rate, or 1 % if `cross` costs nothing.

    Args:
        images: number of good images.
        false_alarm_rate: rate that the calibration must allow, if given.
        free: True if `cross` needs no other models, see `leaves_one_out`.

    >>> [automatic_calibration(n) for n in (8, 9, 44, 45, 2000)], automatic_calibration(48, 0.021)
    ([None, 'cross', 'cross', 9, 99], 'cross')
    >>> [automatic_calibration(n, free=True) for n in (48, 494, 495)]
    ['cross', 'cross', 99]
    """
    count = automatic_count(images)
    needed = LEAST if false_alarm_rate is None else images_needed(false_alarm_rate)
    if count >= max(needed, MOST if free else LEAST):
        return count
    return CROSS if images >= min(LEAST, max(2, needed)) else None


def given_calibration(calibration: Given) -> Given:
    """Return the argument `calibration` with a checked data set; raise ConfigError for other words than `cross`."""
    if isinstance(calibration, str) and calibration != CROSS:
        raise ConfigError(f"calibration must be a number, a data set or {CROSS!r}, but got {calibration!r}")
    if calibration is None or isinstance(calibration, (numbers.Real, str)):
        return calibration
    return checked(calibration, "calibration")


def hold_out(
    dataset: Dataset[Any],
    calibration: Given,
    seed: int = 0,
    false_alarm_rate: float | None = None,
) -> tuple[Dataset[Any], Dataset[Any] | None]:
    """Split a data set into images to train on and images to calibrate on, None without calibration.

    Args:
        dataset: normal images.
        calibration: number of images to hold out, or a fraction below 1, of each category if there are several; a data
            set of other images, which leaves `dataset` whole; `cross`, which leaves it whole too; None or 0 for no
            calibration.
        seed: seed of the draw. Both parts keep the order of the data set.
        false_alarm_rate: rate of the calibration; without a calibration it must be None.

    >>> train, held_out = hold_out(range(10), 0.2)
    >>> len(train), len(held_out), sorted([*train, *held_out]) == list(range(10))
    (8, 2, True)
    """
    if false_alarm_rate is not None and (calibration is None or calibration == 0):
        raise ConfigError(
            f"false_alarm_rate must come with images for calibration, but got {false_alarm_rate:g} without; name such "
            "images, or how many to hold out"
        )
    if calibration is None:
        return dataset, None
    if isinstance(calibration, str):
        check_counts(dataset, false_alarm_rate)
        return dataset, None
    if not isinstance(calibration, numbers.Real):
        if not len(cast(Sized, calibration)):
            raise ConfigError("calibration must hold at least one image, but got none")
        return dataset, cast(Dataset[Any], calibration)
    share = float(calibration)
    taken: list[int] = []
    for name, places in positions_by_category(dataset).items():
        images = len(places)
        held = round(share * images) if share < 1 and not isinstance(calibration, numbers.Integral) else share
        # NaN fails the comparison; True is not a number of images.
        if calibration is True or not 0 <= held < images or held != int(held):
            of = f" of {name}" if name else ""
            raise ConfigError(
                f"calibration must be a fraction below 1 or a number of images{of} below {images}, but got "
                f"{calibration}"
            )
        # Training seeds its generators with three numbers, so these draws are independent.
        order = np.random.default_rng((seed, images, int(held), 1)).permutation(images)
        taken += [places[k] for k in order[: int(held)]]
    if not taken:
        return dataset, None
    left = set(range(len(cast(Sized, dataset)))) - set(taken)
    return Subset(dataset, sorted(left)), Subset(dataset, sorted(taken))


@own_defaults()
def calibrate(
    detector: Detector,
    dataset: Dataset[Any],
    false_alarm_rate: float | None = None,
    *,
    batch_size: int = 8,
    workers: int = 0,
    processes: Processes = ALONE,
    allow_anomalous: bool = False,
) -> Detector:
    """Calibrate a trained detector, so that it predicts p-values, decisions and masks, and return it.

    Args:
        detector: trained detector; it is changed in place.
        dataset: normal images that it was not trained on. With `categories` (see `semflow.data.Categories`), each
            category has its own thresholds, see `Detector.set_category`.
        false_alarm_rate: see `Detector.calibrate`.
        batch_size: images per batch; it does not change the result.
        workers: processes that load images.
        processes: processes that share the images.
        allow_anomalous: use images with an anomalous label or mask too, for which the false-alarm rate does not hold.

    Raises:
        ConfigError: If there are too few images for the rate; the message names the number needed.
        DataError: If the detector was trained on one of the images, or one is labeled anomalous.

    Example:
        >>> import torch
        >>> from semflow.data import Sample
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> good = [Sample(torch.rand(3, 32, 32), 0, None, f"{i}.png") for i in range(9)]  # enough for 10 %
        >>> calibrate(cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32), good).false_alarm_rate
        0.1
    """
    dataset = checked(dataset)
    if not allow_anomalous:
        refuse_anomalous(dataset)  # before any image is read
    names = categories_of(dataset)
    check_categories(names, detector.provenance.categories)
    if names:
        check_counts(dataset, false_alarm_rate)
    digests: list[str] = []
    if detector.provenance.tiles is not None:
        batch_size = 1  # images may have several sizes, and be large
    elif detector.provenance.recipe and len(cast(Sized, dataset)):
        check_size(dataset[0].image, detector.provenance, "dataset")
    known = detector.provenance.fingerprints
    loader = held_out_batches(dataset, known, batch_size, workers, processes, allow_anomalous, digests)
    images = (to_device(batch.images, detector.device) for batch in loader)
    detector.calibrate(images, false_alarm_rate, processes.gather, names)
    detector.provenance = replace(detector.provenance, calibration=_digest(digests, processes))
    return detector


def calibration_digest(
    dataset: Dataset[Any], batch_size: int = 8, workers: int = 0, processes: Processes = ALONE
) -> str:
    """Return the digest of calibration images, whatever their order, as `calibrate` records it."""
    digests: list[str] = []
    for _ in held_out_batches(dataset, (), batch_size, workers, processes, True, digests):
        pass
    return _digest(digests, processes)


def held_out_batches(
    dataset: Dataset[Any],
    known: Iterable[str],
    batch_size: int,
    workers: int,
    processes: Processes,
    allow_anomalous: bool,
    digests: list[str] | None = None,
) -> Iterator[Batch]:
    """Yield this process's batches of calibration images; raise DataError for a training image or an anomalous one."""
    if not allow_anomalous:
        refuse_anomalous(dataset)
    parts = dealt_batches(len(cast(Sized, dataset)), batch_size, processes)
    loaded = unseen(batches(dataset, batch_size, workers, parts), known, digests)
    return loaded if allow_anomalous else normal_only(loaded)


def _digest(digests: list[str], processes: Processes) -> str:
    return hash_parts(sorted(digest for part in processes.gather_all(digests) for digest in part))
