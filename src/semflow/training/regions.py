"""What a detector must know of its images: how they are resized, and their regions of interest."""

from collections.abc import Sized
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from semflow._channels import has_region, split_region
from semflow.data import Sample
from semflow.data.resizing import Resize
from semflow.detectors import Detector
from semflow.files import hash_tensor

from .categories import categories_of


class WithRegion(Dataset[Any]):
    """Samples whose images have a region of interest (H, W) as their last channel, in addition to their own.

    Example:
        >>> samples = WithRegion([Sample(torch.rand(3, 2, 2), 0, None, "a.png")], torch.eye(2) > 0)
        >>> samples[0].image[3].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    def __init__(self, dataset: Any, region: Tensor) -> None:
        self.dataset, self.region = dataset, region.cpu()

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> Any:
        sample: Sample = self.dataset[index]
        return sample._replace(image=with_region(sample.image, self.region))


def with_region(images: Tensor, region: Tensor) -> Tensor:
    """Return images (..., C, H, W) with a region (H, W) as their last channel, in addition to their own."""
    colors, own = split_region(images)
    own = own if own.shape[-3] else torch.ones_like(colors[..., :1, :, :])
    return torch.cat([colors, torch.where(region, own, 0.0)], -3)


def within(dataset: Dataset[Any], detector: Detector) -> Dataset[Any]:
    """Return a data set whose images have the detector's region as a channel, if it has one."""
    return dataset if detector.region is None else WithRegion(dataset, detector.region)


def describe_images(detector: Detector, dataset: Dataset[Any]) -> None:
    """Record in a detector's provenance how the images of a data set are resized, their regions and categories."""
    whole: Any = dataset
    while not hasattr(whole, "resize") and hasattr(whole, "dataset"):
        whole = whole.dataset
    resize: Resize = "pad" if getattr(whole, "resize", "stretch") == "pad" else "stretch"
    channels = len(cast(Any, dataset)[0].image) if len(cast(Sized, dataset)) else 3
    masks = has_region(channels) and (resize == "stretch" or bool(getattr(whole, "regions", False)))
    names = tuple(dict.fromkeys(categories_of(dataset)))
    detector.provenance = replace(detector.provenance, resize=resize, regions=masks, categories=names)


def region_settings(detector: Detector) -> dict[str, Any]:
    """Return the settings of a run on regions, resizing, tiles and categories, without those that are the default."""
    made = detector.provenance
    found: dict[str, Any] = {"resize": made.resize} if made.resize != "stretch" else {}
    if made.regions:
        found["regions"] = True
    if detector.region is not None:
        found["region"] = hash_tensor(detector.region)
    if made.tiles is not None:
        found["tiles"] = made.tiles.as_dict()
    if made.categories:
        found["categories"] = list(made.categories)
    return found
