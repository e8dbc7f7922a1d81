"""Checks of images and masks, so that invalid ones get an error instead of a score."""

from typing import Literal

import torch
from torch import Tensor

from semflow._channels import CHANNELS, has_region
from semflow._devices import is_readable, is_traced
from semflow._validation import height_and_width, kind_of
from semflow.errors import ConfigError, ShapeError
from semflow.functional import border, mask_to_grid

from .interface import Provenance

SLACK = 0.05
"""Tolerance around [0, 1] for rounding and resampling; images of other scales lie far outside."""


LOW = (torch.float16, torch.bfloat16)
"""Types of too low precision for log-probabilities."""


def check_part(name: str, value: object, kind: type[object], advice: str = "", required: bool = False) -> None:
    """Raise ConfigError unless a part of a model, the argument `name`, is an instance of its class, or not given."""
    if isinstance(value, kind) or (value is None and not required):
        return
    if isinstance(value, type):
        advice = "make an instance of it"
    raise ConfigError(f"{name} must be of class {kind.__name__}, but got {kind_of(value)}{advice and '; '}{advice}")


def check_images(images: Tensor, like: Tensor, values: bool = True, name: str = "images") -> None:
    """Raise ShapeError unless images are finite floats (B, C, H, W), see `Sample`, in about [0, 1].

    They must have the device and precision of `like`, a parameter of the detector. Values are not checked while a
    graph of the detector is being traced, nor on a GPU, for which the host would wait, nor with `values=False`.
    """
    if not isinstance(images, Tensor):
        raise ShapeError(f"{name} must be a tensor (B, C, H, W) in [0, 1], but got {type(images).__name__}")
    if images.dim() != 4 or images.shape[1] not in CHANNELS or not images.is_floating_point():
        raise ShapeError(
            f"{name} must be float (B, C, H, W) in [0, 1] with 1 to 4 channels, but got {tuple(images.shape)} of "
            f"{images.dtype}"
        )
    if is_traced():
        return
    _check_not_empty(images)
    if images.device != like.device:
        raise ShapeError(f"{name} must be on the detector's device, {like.device}, but got {images.device}; move them")
    check_precision(like)
    if images.dtype == torch.float64 and like.dtype != torch.float64:
        raise ShapeError(f"{name} must be {like.dtype} like the detector, but got {images.dtype}; convert them")
    if values and images.device.type == "cpu":
        check_values(images, name)


def check_values(images: Tensor, name: str = "images") -> None:
    """Raise ShapeError unless images (B, C, H, W) are in about [0, 1]; waits for a GPU once."""
    if not is_readable(images):
        return
    images = images.detach()
    found = list(torch.aminmax(images))  # NaN if any pixel is NaN
    if has_region(images.shape[1]):
        found.append(((images[:, -1] == 0) | (images[:, -1] == 1)).all().to(images.dtype))
    low, high, *binary = torch.stack(found).tolist()
    if not (low >= -SLACK and high <= 1 + SLACK):
        advice = "remove images with NaN or infinite pixels"
        if abs(low) < float("inf") and abs(high) < float("inf"):
            advice = "divide bytes by 255 and do not normalize, which the backbone does"
        raise ShapeError(f"{name} must lie in [0, 1], but got values from {low:g} to {high:g}; {advice}")
    if binary == [0.0]:
        raise ShapeError(
            f"{name} must have 0 or 1 as their last channel, their region of interest, but got other values in "
            f"{tuple(images.shape)}; leave an alpha channel out"
        )


def check_size(image: Tensor, provenance: Provenance, name: str) -> None:
    """Raise ShapeError unless an image (..., C, H, W) has the size that a recipe was given; others may take any size.

    If the images of training had a region, so must this one.
    """
    expected, size = height_and_width(provenance.image_size), (image.shape[-2], image.shape[-1])
    if provenance.recipe and size != expected:
        raise ShapeError(
            f"{name} must have images of {expected[0]} x {expected[1]} pixels, the image_size of this "
            f"{provenance.recipe}, but got {size[0]} x {size[1]}; load them with image_size={provenance.image_size}, "
            "or build the detector with their size"
        )
    if has_region(provenance.channels) and not has_region(image.shape[-3]):
        how = "the masks of their regions" if provenance.regions else 'resize="pad"'
        raise ShapeError(
            f"{name} must have their region as the last of 2 or 4 channels, as in training, but got {image.shape[-3]}; "
            f"load them with {how}"
        )


def check_precision(like: Tensor) -> None:
    """Raise ShapeError if a tensor of a detector has too low a precision."""
    if like.dtype in LOW:
        raise ShapeError(
            f"detector must be torch.float32 or torch.float64, but got {like.dtype}, whose precision is too low for "
            "log-probabilities; call detector.float(), and use torch.autocast around predict if that is faster"
        )


def check_masks(anomaly_masks: Tensor | None, images: Tensor) -> None:
    """Raise ShapeError unless there are images, and masks, if any, are numbers (B, H, W) of the same size."""
    _check_not_empty(images)
    if anomaly_masks is None:
        return
    expected = (images.shape[0], *images.shape[2:])
    if tuple(anomaly_masks.shape) != expected:
        raise ShapeError(
            f"anomaly_masks must be (B, H, W) = {expected} like the images, but got {tuple(anomaly_masks.shape)}"
        )
    on_cpu = anomaly_masks.device.type == "cpu"
    if on_cpu and anomaly_masks.is_floating_point() and bool(anomaly_masks.isnan().any()):
        raise ShapeError("anomaly_masks must be numbers, positive where anomalous, but got NaN")


def location_masks(
    anomaly_masks: Tensor | None,
    size: tuple[int, int],
    mask_resize: Literal["nearest", "max"],
    guard: int,
    inside: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute masks (B, h, w) of the anomalous locations of a feature map, and of those around them to ignore.

    Args:
        anomaly_masks: (B, H, W), 1 where anomalous; None if all is normal, which returns None twice.
        size: height and width of the feature map.
        mask_resize: see `semflow.functional.mask_to_grid`.
        guard: width of the ignored border in locations.
        inside: (B, h, w), the locations in the region of interest, outside of which all are ignored; None for all.

    Example:
        >>> masks = torch.eye(8)[None] * torch.tensor([1.0] + [0.0] * 7)
        >>> [int(mask.sum()) for mask in location_masks(masks, (4, 4), "max", guard=1)]
        [1, 3]
    """
    outside = None if inside is None else ~inside
    if anomaly_masks is None:
        return None, outside
    mask = mask_to_grid(anomaly_masks, size, mask_resize)
    ignored = border(mask, guard)
    return mask, ignored if outside is None else ignored | outside


def _check_not_empty(images: Tensor) -> None:
    if 0 in images.shape:
        raise ShapeError(f"images must hold at least one image of one pixel, but got shape {tuple(images.shape)}")
