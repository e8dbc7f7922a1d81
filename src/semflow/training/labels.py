"""Labels of images that are taken for normal."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import Dataset

from semflow.data import Batch, Sample
from semflow.errors import DataError

from .categories import of_images


def refuse_anomalous(dataset: Dataset[Any]) -> bool:
    """Raise DataError for the first image that its data set labels anomalous, before any is loaded.

    Return False if only the samples themselves have labels; `normal_only` then finds them.

    Example:
        >>> from semflow.data import ImageDataset, Record
        >>> from pathlib import Path
        >>> refuse_anomalous(ImageDataset([Record(Path("a.png"), 0)]))
        True
    """
    labels, paths = (of_images(dataset, name) for name in ("labels", "paths"))
    if labels is None or paths is None:
        return False
    for label, path in zip(labels, paths, strict=True):
        if label == 1:
            raise _refused(path, "label 1, anomalous")
    return True


def normal_only(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield batches, and raise DataError for the first image that its label or its mask calls anomalous.

    Example:
        >>> import torch
        >>> from semflow.data import Sample, collate
        >>> batch = collate([Sample(torch.rand(3, 8, 8), 0, None, "a.png")])
        >>> [one.paths for one in normal_only([batch])]
        [('a.png',)]
    """
    for batch in batches:
        check_normal(batch)
        yield batch


def check_normal(batch: Batch) -> None:
    """Raise DataError for the first image of a batch that its label or its mask calls anomalous.

    Example:
        >>> import torch
        >>> from semflow.data import Sample, collate
        >>> check_normal(collate([Sample(torch.rand(3, 8, 8), -1, None, "a.png")]))  # an unknown label
    """
    masks = [None] * len(batch.paths) if batch.anomaly_masks is None else batch.anomaly_masks
    for sample in map(Sample, batch.images, batch.labels.tolist(), masks, batch.paths):
        check_sample(sample)


def check_sample(sample: Sample) -> None:
    """Raise DataError for an image that its label or its mask calls anomalous.

    >>> import torch
    >>> check_sample(Sample(torch.rand(3, 8, 8), 0, None, "a.png"))
    """
    if sample.label == 1:
        raise _refused(sample.path, "label 1, anomalous")
    if sample.anomaly_mask is not None and bool(sample.anomaly_mask.any()):
        raise _refused(sample.path, "a mask with anomalous pixels")


def _refused(path: str, found: str) -> DataError:
    return DataError(
        f"{path} must be normal, but got {found}; leave it out, or set allow_anomalous to use it all the same"
    )
