"""Models, data and processes of the commands: loading them, and checks before the work starts."""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from semflow._validation import Size
from semflow.app.export.runtime import SUFFIXES
from semflow.data import Categories, ImageDataset, PassedOver, duplicates, load_region, open_dataset
from semflow.data.reading import has_more_pages, oriented_size
from semflow.data.regions import check_proportions
from semflow.data.walking import describe, find_images, relative
from semflow.detectors import Predictor
from semflow.errors import ConfigError, DataError, ProcessError, SemflowError
from semflow.files import hash_file, hash_parts
from semflow.training import Processes, launched_processes
from semflow.training.checkpoint import CONFIG, MODEL

from .console import track
from .option_types import Device

CACHE_BYTES = 2**27
PAGES = "pages after the first: save each as a file"  # of a file, in what is not read
# Folders of MVTec AD and AD 2, BTAD and VisA
NORMAL, TESTS = ("good", "ok", "Normal"), ("test", "test_public", "Images")


class WithCategories(Protocol):
    """Options of a command that reads a data set."""

    @property
    def category(self) -> str | None:
        """Value of --category."""

    @property
    def categories(self) -> tuple[str, ...]:
        """Value of --categories."""


class _Container(NamedTuple):
    name: str
    endings: tuple[str, ...]
    advice: str


CONTAINERS = (
    _Container(
        "video",
        (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts", ".mjpeg", ".h264", ".flv"),
        "write its frames to a folder, for example with ffmpeg -i VIDEO FOLDER/%06d.png",
    ),
    _Container(
        "archive",
        (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"),
        "unpack it and name the folder",
    ),
    _Container(
        "list",
        (".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx", ".yaml", ".yml", ".lst"),
        "name the folder of the images, or score the images of a list (.txt, one path per line) or table (.parquet) "
        "with semflow score",
    ),
    _Container("document", (".pdf", ".docx", ".pptx", ".html"), "save its pictures as image files"),
    _Container(
        "array", (".npy", ".npz", ".h5", ".hdf5", ".mat", ".pt", ".pth", ".pkl", ".tfrecord"), "save its images as PNG"
    ),
)


def load_detector(
    model: Path, device: Device, false_alarm_rate: float | None = None, category: str | None = None
) -> Predictor:
    """Load a run directory or an exported file, and set the false-alarm rate and the category if they are given."""
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
        if category is not None:
            raise ConfigError(
                f"--category must be left out for the exported file {model}, but got {category}; export the run with "
                "--category"
            )
        return exported
    from semflow.recipes import load

    detector = load(model, device=device)
    if false_alarm_rate is not None:
        if not detector.calibration.count:
            raise ConfigError(
                f"{model} must be calibrated for --false-alarm-rate, but got no calibration; run semflow calibrate"
            )
        detector.calibration.set_rate(false_alarm_rate)
    detector.set_category(category)
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
    """Keep decoded images and masks in memory if this process loads them and they need at most CACHE_BYTES."""
    shape = dataset.shape  # None for large images, which are cut into tiles
    size = 0 if shape is None else math.prod(shape) + dataset.has_masks * math.prod(shape[1:])
    dataset.cache = workers == 0 and shape is not None and len(dataset) * size <= CACHE_BYTES
    return dataset


def with_pages(dataset: ImageDataset) -> ImageDataset:
    """Add the pages that follow the first of a file to what a data set passes over."""
    more = (PassedOver(Path(path), PAGES, unread=True) for path in dataset.paths if has_more_pages(path))
    dataset.passed_over += tuple(more)
    return dataset


def note_of(passed_over: Sequence[PassedOver], root: Path | None) -> str:
    """Return the end of a summary line that names what was passed over, or "" if that is nothing."""
    return f"; passed over {len(passed_over)}: {describe(passed_over, root)}" if passed_over else ""


def exit_code(passed_over: Sequence[PassedOver]) -> int:
    """Return the exit code of a finished command: 1 if something that looks like an image was passed over, else 0.

    >>> exit_code([PassedOver(Path("a.cr2"), "camera raw", unread=True)]), exit_code([])
    (1, 0)
    """
    return int(any(item.unread for item in passed_over))


def rows_of(passed_over: Sequence[PassedOver], root: Path | None) -> list[dict[str, str]]:
    """Return what was passed over, for a JSON file."""
    return [{"path": relative(path, root), "reason": reason} for path, reason, _ in passed_over]


def check_images(dataset: ImageDataset) -> None:
    """Decode every image. Raise DataError for the first one that is not readable."""
    for index in track(range(len(dataset)), "checking images", len(dataset), terminal_only=True):
        dataset[index]


def names_of(options: "WithCategories") -> dict[str, Any]:
    """Return the arguments of `open_dataset` for --category and --categories."""
    if options.category is not None and options.categories:
        raise ConfigError(f"--category must be left out with --categories, but got {options.category}")
    return {"category": options.category, "categories": options.categories or None}


def together(dataset: ImageDataset) -> dict[str, Any]:
    """Return the argument of `open_dataset` for the categories of a data set, if it has several."""
    return {"categories": list(dataset.parts)} if isinstance(dataset, Categories) else {}


def warn_of_leaks(data: Path, **names: Any) -> None:
    """Warn if training and test images share files: metrics of such images are too good. See `names_of`."""
    try:
        train, test = (open_dataset(data, half, **names) for half in ("train", "test"))
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


def advise(path: Path, option: str, lists: tuple[str, ...] = ()) -> None:
    """Raise DataError for a file that holds images in a way that is not read, and say what to do with it."""
    name = path.name.lower()
    found = next((kind for kind in CONTAINERS if name.endswith(kind.endings)), None)
    if found is not None and path.is_file() and not name.endswith(lists or ("/",)):
        raise DataError(
            f"{option} must be an image or a folder of images, but got the {found.name} {path}; {found.advice}"
        )


def open_normal(
    path: Path,
    image_size: Size | None,
    option: str,
    allow_anomalous: bool = False,
    **read: Any,
) -> ImageDataset:
    """Open images that are taken for normal; refuse a folder of a test set that other commands call anomalous.

    `read` is how images are read, see `reading`, and which ones, see `names_of`.
    """
    advise(path, option)
    folder = Path(os.path.abspath(path))  # noqa: PTH100 - resolve would follow links
    normal = next((folder.with_name(name) for name in NORMAL if folder.with_name(name).is_dir()), None)
    known = folder.name not in NORMAL and folder.parent.name in TESTS and normal is not None
    if not allow_anomalous and (known or "ground_truth" in folder.parts[-2:]):
        first = next(iter(find_images(folder)), folder) if folder.is_dir() else folder
        raise DataError(
            f"{first} must be normal, but got a folder of {'defects' if known else 'masks'} in {option}; name "
            f"{normal if known else 'a folder of good images'}, or give --allow-anomalous to use it all the same"
        )
    return with_pages(open_dataset(path, "train", image_size, **read))


def reading(predictor: Predictor, regions: Path | None) -> dict[str, Any]:
    """Return how images for a model are read: the arguments of `open_dataset` that make them those of training.

    Raises:
        ConfigError: If `regions`, of --region, are missing or not needed.
    """
    made = predictor.provenance
    if made.regions and regions is None:
        raise ConfigError(
            "--region must be a mask or a folder of masks for a model that was trained with a folder of masks, but got "
            "none; name the masks of these images"
        )
    if regions is not None and not made.regions:
        raise ConfigError(
            f"--region must be left out for a model that was trained without a folder of masks, but got {regions}"
        )
    return {"resize": made.resize, "regions": regions}


def region_of(dataset: ImageDataset, path: Path) -> Tensor:
    """Load the region of interest of all images of a data set, whose proportions the mask must have."""
    mask = oriented_size(path)
    for image in filter(os.path.isfile, dataset.paths):
        check_proportions(path, mask, oriented_size(image))
    return load_region(path, dataset.size_of(mask), dataset.resize)


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
