"""Normal images held out of training for calibration."""

import numbers
from collections.abc import Sized
from typing import Any, cast

import numpy as np
from torch.utils.data import Dataset, Subset

from semflow._defaults import own_defaults
from semflow.detectors import Detector
from semflow.detectors.conformal import images_needed
from semflow.errors import ConfigError

from .cache import unseen
from .distributed import ALONE, Processes
from .loading import batches, checked, dealt_batches

LEAST, MOST = images_needed(0.1), images_needed(0.01)


def automatic_count(images: int) -> int:
    """Return the default number of images to hold out: a fifth, at most 99, or 0 if a fifth is fewer than 9.

    >>> [automatic_count(n) for n in (10, 44, 45, 60, 320, 2000)]
    [0, 0, 9, 12, 64, 99]
    """
    fifth = min(images // 5, MOST)
    return fifth if fifth >= LEAST else 0


def hold_out(
    dataset: Dataset[Any], calibration: float | int | Dataset[Any] | None, seed: int = 0
) -> tuple[Dataset[Any], Dataset[Any] | None]:
    """Split a data set into images to train on and images to calibrate on, None without calibration.

    Args:
        dataset: normal images.
        calibration: number of images to hold out, or a fraction below 1; a data set of other images, which leaves
            `dataset` whole; None or 0 for no calibration.
        seed: seed of the draw. Both parts keep the order of the data set.

    >>> train, held_out = hold_out(range(10), 0.2)
    >>> len(train), len(held_out), sorted([*train, *held_out]) == list(range(10))
    (8, 2, True)
    """
    if calibration is None:
        return dataset, None
    if not isinstance(calibration, numbers.Real):
        if not len(cast(Sized, calibration)):
            raise ConfigError("calibration must hold at least one image, but got none")
        return dataset, cast(Dataset[Any], calibration)
    images = len(cast(Sized, dataset))
    share = float(calibration)
    held = round(share * images) if share < 1 and not isinstance(calibration, numbers.Integral) else share
    # NaN fails the comparison; True is not a number of images.
    if calibration is True or not 0 <= held < images or held != int(held):
        raise ConfigError(
            f"calibration must be a fraction below 1 or a number of images below {images}, but got {calibration}"
        )
    if held == 0:
        return dataset, None
    # Training seeds its generators with three numbers, so these draws are independent.
    order = np.random.default_rng((seed, images, int(held), 1)).permutation(images)
    taken, left = sorted(order[: int(held)].tolist()), sorted(order[int(held) :].tolist())
    return Subset(dataset, left), Subset(dataset, taken)


@own_defaults()
def calibrate(
    detector: Detector,
    dataset: Dataset[Any],
    false_alarm_rate: float | None = None,
    *,
    batch_size: int = 8,
    workers: int = 0,
    processes: Processes = ALONE,
) -> Detector:
    """Calibrate a trained detector, so that it predicts p-values, decisions and masks, and return it.

    Args:
        detector: trained detector; it is changed in place.
        dataset: normal images that it was not trained on.
        false_alarm_rate: see `Detector.calibrate`.
        batch_size: images per batch; it does not change the result.
        workers: processes that load images.
        processes: processes that share the images.

    Raises:
        ConfigError: If there are too few images for the rate; the message names the number needed.
        DataError: If the detector was trained on one of the images.

    Example:
        >>> import torch
        >>> from semflow.data import Sample
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> good = [Sample(torch.rand(3, 32, 32), 0, None, f"{i}.png") for i in range(9)]  # enough for 10 %
        >>> calibrate(cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32), good).false_alarm_rate
        0.1
    """
    dataset = checked(dataset)
    parts = dealt_batches(len(cast(Sized, dataset)), batch_size, processes)
    loader = unseen(batches(dataset, batch_size, workers, parts), detector.provenance.fingerprints)
    images = (batch.images.to(detector.device) for batch in loader)
    detector.calibrate(images, false_alarm_rate, processes.gather)
    return detector
