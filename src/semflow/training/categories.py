"""Categories of the images of a data set, and data sets for each of them."""

from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any, cast

from torch.utils.data import Dataset, Subset

from semflow.data import Categories, CheckedSamples
from semflow.detectors import Detector, Predictor
from semflow.detectors.conformal import check_count


def of_images(dataset: Any, name: str) -> Sequence[Any] | None:
    """Return an attribute that a data set has for each of its images, such as `labels`; None without one.

    >>> from torch.utils.data import Subset
    >>> class Letters(list):
    ...     categories = ("vowel", "consonant", "consonant")
    >>> of_images(Subset(Letters("abc"), [2, 0]), "categories")
    ['consonant', 'vowel']
    """
    if isinstance(dataset, Subset):
        known = of_images(dataset.dataset, name)
        return None if known is None else [known[i] for i in dataset.indices]
    if isinstance(dataset, CheckedSamples):
        return of_images(dataset.dataset, name)
    found = getattr(dataset, name, None)
    return found if isinstance(found, Sequence) and len(found) == len(cast(Sized, dataset)) else None


def categories_of(dataset: Dataset[Any]) -> tuple[str, ...]:
    """Return the category of each image, or nothing for a data set without `categories`."""
    return tuple(map(str, of_images(dataset, "categories") or ()))


def positions_by_category(dataset: Dataset[Any]) -> dict[str, list[int]]:
    """Return the positions of the images of each category; of all images, under "", without categories.

    >>> class Letters(list):
    ...     categories = ("vowel", "consonant", "consonant")
    >>> positions_by_category(Letters("abc")), positions_by_category([1, 2])
    ({'vowel': [0], 'consonant': [1, 2]}, {'': [0, 1]})
    """
    found: dict[str, list[int]] = {}
    for position, name in enumerate(categories_of(dataset) or [""] * len(cast(Sized, dataset))):
        found.setdefault(name, []).append(position)
    return found


def by_category(dataset: Any) -> dict[str, Dataset[Any]]:
    """Return the images of each category as a data set of their own; nothing without categories."""
    whole = dataset
    while isinstance(whole, CheckedSamples):
        whole = whole.dataset
    if isinstance(whole, Categories):
        return dict(whole.parts)
    names = categories_of(dataset)
    return {name: Subset(dataset, own) for name, own in positions_by_category(dataset).items()} if names else {}


@contextmanager
def deciding_for(detector: Predictor, name: str) -> Iterator[None]:
    """Let a detector decide by the calibration images of a category, if it has any, in the block."""
    if not isinstance(detector, Detector) or name not in detector.decides_for:
        yield
        return
    before = detector.calibration.chosen
    detector.set_category(name)
    try:
        yield
    finally:
        detector.calibration.choose(before)


def check_counts(dataset: Dataset[Any], false_alarm_rate: float | None) -> None:
    """Raise ConfigError if a category, or a data set without any, has too few images for calibration at a rate."""
    images, name = fewest(dataset)
    check_count(images, false_alarm_rate, name)


def fewest(dataset: Dataset[Any]) -> tuple[int, str]:
    """Return the number of images of the smallest category with its name, or of all images.

    >>> class Letters(list):
    ...     categories = ("vowel", "consonant", "consonant")
    >>> fewest(Letters("abc")), fewest([1, 2])
    ((1, 'vowel'), (2, ''))
    """
    sizes = [(len(own), name) for name, own in positions_by_category(dataset).items()]
    return min(sizes, key=lambda pair: pair[0], default=(0, ""))
