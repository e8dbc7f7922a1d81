"""Normal images that training leaves alone, so that decisions can rest on them."""

import numbers
from collections.abc import Sized
from typing import Any, cast

import numpy as np
from torch.utils.data import Dataset, Subset

from semflow.detectors import Detector
from semflow.detectors.conformal import images_needed
from semflow.errors import ConfigError

from .cache import unseen
from .distributed import ALONE, Processes
from .loading import batches, dealt_batches

__all__ = ["automatic_count", "calibrate", "hold_out"]

LEAST, MOST = images_needed(0.1), images_needed(0.01)


def automatic_count(images: int) -> int:
    """How many of the training images to hold out where nobody says: a fifth, from 9 to 99, or none.

    9 is what a false-alarm rate of 10 % takes and 99 what 1 % takes. Where a fifth is fewer than 9 training needs the
    images more: none is held out, and there are no p-values.

    >>> [automatic_count(n) for n in (10, 44, 45, 60, 320, 2000)]
    [0, 0, 9, 12, 64, 99]
    """
    fifth = min(images // 5, MOST)
    return fifth if fifth >= LEAST else 0


def hold_out(
    dataset: Dataset[Any], calibration: float | int | Dataset[Any] | None, seed: int = 0
) -> tuple[Dataset[Any], Dataset[Any] | None]:
    """What to train on, and what to calibrate on.

    Args:
        dataset: normal images.
        calibration: a number of them to hold out, or a fraction below 1; a data set of its own, which leaves `dataset`
            whole; or None or 0 for neither.
        seed: of the draw. Each half keeps the order of the data set.

    >>> train, held_out = hold_out(range(10), 0.2)
    >>> len(train), len(held_out), sorted([*train, *held_out]) == list(range(10))
    (8, 2, True)

    Raises:
        ConfigError: it is more than there are, or leaves none to train on.
    """
    if calibration is None:
        return dataset, None
    if not isinstance(calibration, numbers.Real):
        if not len(cast(Sized, calibration)):
            raise ConfigError("calibration must hold at least one image, but is empty")
        return dataset, cast(Dataset[Any], calibration)
    images = len(cast(Sized, dataset))
    share = float(calibration)
    held = round(share * images) if share < 1 and not isinstance(calibration, numbers.Integral) else share
    # In this order: what is not a number is no integer either. Nor is True a number of images.
    if calibration is True or not 0 <= held < images or held != int(held):
        raise ConfigError(
            f"calibration must be a fraction below 1, or a number of images that leaves one of {images} to train on, "
            f"but got {calibration}"
        )
    if held == 0:
        return dataset, None
    # Four words, where the draws of training take three: no two of them are the same stream.
    order = np.random.default_rng((seed, images, int(held), 1)).permutation(images)
    taken, left = sorted(order[: int(held)].tolist()), sorted(order[int(held) :].tolist())
    return Subset(dataset, left), Subset(dataset, taken)


def calibrate(
    detector: Detector,
    dataset: Dataset[Any],
    false_alarm_rate: float | None = None,
    *,
    batch_size: int = 8,
    workers: int = 0,
    processes: Processes = ALONE,
) -> Detector:
    """Let a trained detector say p-values, decisions and masks, from normal images that it was not trained on.

    Args:
        detector: trained; it is changed, and returned.
        dataset: normal images.
        false_alarm_rate: see `Detector.calibrate`.
        batch_size, workers: of the loader; they do not change the result.
        processes: that share the images out.

    Raises:
        ConfigError: there are too few images for the rate; the message says how many are needed.
        DataError: an image is one that the detector was trained on (see `Provenance.fingerprints`).

    Example:
        >>> import torch
        >>> from semflow.data import Sample
        >>> from semflow.recipes import Backbone, Couplings, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, couplings=Couplings(1, 4))
        >>> good = [Sample(torch.rand(3, 32, 32), 0, None, f"{i}.png") for i in range(9)]  # what 10 % needs
        >>> detector = calibrate(detector, good, false_alarm_rate=0.1)
        >>> detector.predict(good[0].image[None]).p_value.item() > 0.1
        True
    """
    parts = dealt_batches(len(cast(Sized, dataset)), batch_size, processes)
    loader = unseen(batches(dataset, batch_size, workers, parts), detector.provenance.fingerprints)
    images = (batch.images.to(detector.device) for batch in loader)
    detector.calibrate(images, false_alarm_rate, processes.gather)
    return detector
