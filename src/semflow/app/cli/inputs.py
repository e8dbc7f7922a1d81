"""What the commands check before they begin, so that hours of work do not end at a broken file."""

__all__ = ["fingerprint", "load_detector", "readable", "verified", "warn_of_leaks"]

import warnings
from collections.abc import Sequence
from pathlib import Path

from semflow.app.export.runtime import SUFFIXES
from semflow.data import ImageDataset, duplicates, open_dataset
from semflow.detectors import Predictor
from semflow.errors import ConfigError, DataError
from semflow.files import hash_file, hash_parts
from semflow.training.checkpoint import CONFIG, MODEL
from semflow.training.loading import check_device

from .console import track
from .options import Device

CACHE_BYTES = 2**30


def load_detector(model: Path, device: Device) -> Predictor:
    """The detector of a run directory, or an exported file, on the device, which is looked for first."""
    if model.is_file():
        from semflow.app.export import load as load_exported  # needs no timm

        return load_exported(model, device)
    from semflow.recipes import load

    chosen = check_device(device)
    return load(model).to(chosen)


def verified(dataset: ImageDataset, *, cache: bool = False) -> ImageDataset:
    """The data set, every file of which has been decoded once; DataError names the first that cannot be.

    With `cache`, the decoded images are kept if they fit into a gigabyte, so that training decodes nothing twice.
    """
    dataset.cache = cache and len(dataset) * 3 * dataset.image_size**2 <= CACHE_BYTES
    readable(dataset, range(len(dataset)))
    return dataset


def readable(dataset: ImageDataset, indices: Sequence[int], left_out: dict[int, str] | None = None) -> list[int]:
    """Those of the indices whose image can be decoded.

    Args:
        dataset: images.
        indices: of the images to look at.
        left_out: where the others go, each with the reason. None stops at the first: its DataError is raised.
    """
    good = []
    for index in track(indices, "checking images", len(indices), quiet_elsewhere=True):
        try:
            dataset[index]
        except DataError as error:
            if left_out is None:
                raise
            left_out[index] = str(error)
        else:
            good.append(index)
    return good


def warn_of_leaks(data: Path, category: str | None) -> None:
    """Warn when a data set's training and test images have files in common: figures on them say nothing."""
    try:
        train, test = (open_dataset(data, half, category=category) for half in ("train", "test"))
    except (ConfigError, DataError):  # only one of the two is there, or the other is what this command will complain of
        return
    if set(train.paths) & set(test.paths):  # one folder of good images, and not two halves
        return
    pairs = duplicates(train.paths, test.paths)
    if pairs:
        others = f", and {len(pairs) - 1} more" if len(pairs) > 1 else ""
        warnings.warn(
            f"{pairs[0][1]} is a training image too, {pairs[0][0]}{others}: figures on images that training has seen "
            "are too good; take them out of one of the two",
            stacklevel=1,
        )


def fingerprint(model: Path) -> str:
    """A hash of the files that a model is read from, whatever they are called and wherever they lie.

    Of a run directory those are its configuration and its weights, so that outputs that are made in it change nothing;
    of a file exported for OpenVINO, its weights beside it.

    Raises:
        DataError: a file cannot be read.
    """
    if model.is_dir():
        files = [model / CONFIG, model / MODEL]
    else:
        files = [model, *([model.with_suffix(".bin")] if model.suffix == SUFFIXES["openvino"] else [])]
    parts = []
    for file in files:
        if file.is_file():  # that one is missing is said by who loads the model
            try:
                parts += [file.suffix, hash_file(file)]
            except OSError as error:
                reason = error.strerror or str(error)
                raise DataError(f"{file}: expected a file that can be read, but: {reason}; look at it") from None
    return hash_parts(parts)
