"""What the commands check before they begin, so that hours of work do not end at a broken file."""

__all__ = ["load_detector", "verified"]

from pathlib import Path

from semflow.cli.console import track
from semflow.cli.options import Device
from semflow.data import ImageDataset
from semflow.detectors import Detector
from semflow.detectors.loading import check_device
from semflow.recipes import load

CACHE_BYTES = 2**30


def load_detector(run: Path, device: Device) -> Detector:
    """The trained detector of a run directory, on the device, which is looked for first."""
    chosen = check_device(device)
    return load(run).to(chosen)


def verified(dataset: ImageDataset, *, cache: bool = False) -> ImageDataset:
    """The data set, every file of which has been decoded once; DataError names the first that cannot be.

    With `cache`, the decoded images are kept if they fit into a gigabyte, so that training decodes nothing twice.
    """
    dataset.cache = cache and len(dataset) * 3 * dataset.image_size**2 <= CACHE_BYTES
    for _ in track(
        map(dataset.__getitem__, range(len(dataset))), "checking images", len(dataset), quiet_elsewhere=True
    ):
        pass
    return dataset
