"""Models, data and processes of the commands: loading them, and checks before the work starts."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from semflow.app.export.runtime import SUFFIXES
from semflow.data import ImageDataset, PassedOver, duplicates, open_dataset
from semflow.data.walking import describe, relative
from semflow.detectors import Predictor
from semflow.errors import ConfigError, DataError, ProcessError, SemflowError
from semflow.files import hash_file, hash_parts
from semflow.training import Processes, launched_processes
from semflow.training.checkpoint import CONFIG, MODEL
from semflow.training.loading import check_device

from .console import track
from .options import Device

CACHE_BYTES = 2**30


def load_detector(model: Path, device: Device, false_alarm_rate: float | None = None) -> Predictor:
    """Load a run directory or an exported file, and set the false-alarm rate if one is given."""
    if model.is_file():
        from semflow.app.export import load as load_exported  # needs no timm

        exported = load_exported(model, device)
        rate = exported.false_alarm_rate
        if false_alarm_rate not in (None, rate):
            expected = "left out" if rate is None else f"{rate:g}"
            raise ConfigError(
                f"--false-alarm-rate must be {expected} for the exported file {model}, but got {false_alarm_rate:g}; "
                "use the run directory for other rates"
            )
        return exported
    from semflow.recipes import load

    detector = load(model).to(check_device(device))
    if false_alarm_rate is not None:
        if not detector.calibration.count:
            raise ConfigError(
                f"{model} must be calibrated for --false-alarm-rate, but got no calibration; run semflow calibrate"
            )
        detector.calibration.set_rate(false_alarm_rate)
    return detector


@contextmanager
def launched(device: Device) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes that torchrun started. If several of them fail for the same reason, only one reports it."""
    with launched_processes(device) as (processes, own):
        try:
            yield processes, own
        except (SemflowError, OSError) as error:
            if not processes.reports(str(error), isinstance(error, ProcessError)):
                raise SystemExit(2) from None
            raise


def cache_small(dataset: ImageDataset, workers: int) -> ImageDataset:
    """Keep decoded images in memory if this process loads them and they need at most CACHE_BYTES."""
    dataset.cache = workers == 0 and len(dataset) * 3 * dataset.image_size**2 <= CACHE_BYTES
    return dataset


def note_of(passed_over: Sequence[PassedOver], root: Path | None) -> str:
    """Return the end of a summary line that names what was passed over, or "" if that is nothing."""
    return f"; passed over {len(passed_over)}: {describe(passed_over, root)}" if passed_over else ""


def rows_of(passed_over: Sequence[PassedOver], root: Path | None) -> list[dict[str, str]]:
    """Return what was passed over, for a JSON file."""
    return [{"path": relative(path, root), "reason": reason} for path, reason in passed_over]


def check_images(dataset: ImageDataset) -> None:
    """Decode every image. Raise DataError for the first one that is not readable."""
    for index in track(range(len(dataset)), "checking images", len(dataset), terminal_only=True):
        dataset[index]


def warn_of_leaks(data: Path, category: str | None) -> None:
    """Warn if training and test images share files: metrics of such images are too good."""
    try:
        train, test = (open_dataset(data, half, category=category) for half in ("train", "test"))
    except (ConfigError, DataError):  # one of them is missing, or the command itself will report the problem
        return
    if set(train.paths) & set(test.paths):  # one folder of good images without a test set
        return
    if pairs := duplicates(train.paths, test.paths):
        others = f" (and {len(pairs) - 1} more)" if len(pairs) > 1 else ""
        warnings.warn(
            f"test image {pairs[0][1]} is a copy of training image {pairs[0][0]}{others}; metrics will be too good; "
            "remove the copies",
            stacklevel=1,
        )


def fingerprint(model: Path) -> str:
    """Hash the content of the files from which a model is loaded, independent of their names and location."""
    if model.is_dir():
        files = [model / CONFIG, model / MODEL]
    else:  # an OpenVINO file has its weights beside it
        files = [model, model.with_suffix(".bin")] if model.suffix == SUFFIXES["openvino"] else [model]
    there = [file for file in files if file.is_file()]  # loading the model reports missing files
    try:
        return hash_parts(part for file in there for part in (file.suffix, hash_file(file)))
    except OSError as error:
        raise DataError(f"{error.filename or model} must be readable, but got {error.strerror or error}") from None
