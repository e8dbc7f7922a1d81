"""Checks of the features, images and masks that `with_statistics` is given."""

from collections.abc import Sequence

from torch import Tensor

from semflow._channels import has_region
from semflow._devices import is_readable
from semflow._validation import counted
from semflow.detectors.inputs import check_images
from semflow.errors import ShapeError


def check_maps(maps: Sequence[Tensor]) -> None:
    """Raise ShapeError unless feature maps are finite floats (B, C_k, H_k, W_k) of one batch."""
    for position, x in enumerate(maps):
        name = "features" if len(maps) == 1 else f"features[{position}]"
        if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point() or x.numel() == 0:
            given = f"{tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(f"{name} must be float maps (B, C, H, W), but got {given}")
        if x.shape[0] != maps[0].shape[0]:
            raise ShapeError(f"{name} must hold {counted(maps[0].shape[0], 'sample')}, as the first, but got {len(x)}")
        check_finite(name, x)


def check_image(image: Tensor, maps: Sequence[Tensor]) -> None:
    """Raise ShapeError unless images are floats (B, 1, H, W) or (B, 3, H, W) in [0, 1] that belong to the maps."""
    check_images(image, maps[0], name="image")
    if has_region(image.shape[1]) or image.shape[0] != maps[0].shape[0]:
        expected = counted(maps[0].shape[0], "image")
        raise ShapeError(f"image must hold {expected} of 1 or 3 channels, as features do, but got {tuple(image.shape)}")


def check_mask(mask: Tensor, maps: Sequence[Tensor], image: tuple[int, int] | None) -> None:
    """Raise ShapeError unless a mask is numbers (B, H, W) of the size of the image, if known, or of a single map."""
    sizes = [image] if image is not None else []
    sizes += [(maps[0].shape[2], maps[0].shape[3])] if image is not None and len(maps) == 1 else []
    if not isinstance(mask, Tensor) or mask.dim() != 3 or mask.shape[0] != maps[0].shape[0] or mask.numel() == 0:
        given = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ShapeError(f"anomaly_mask must be (B, H, W) with B = {maps[0].shape[0]}, but got {given}")
    if sizes and (mask.shape[1], mask.shape[2]) not in sizes:
        expected = " or ".join(f"{height} x {width}" for height, width in sizes)
        raise ShapeError(f"anomaly_mask must have the size {expected}, but got {mask.shape[1]} x {mask.shape[2]}")
    if mask.is_floating_point():
        check_finite("anomaly_mask", mask)


def check_normalized(images: Tensor) -> None:
    """Raise ShapeError unless images are finite and of the size of those that were normalized for ImageNet."""
    check_maps([images])
    if is_readable(images) and (largest := images.detach().abs().max().item()) > 10:  # normalized: within about 3
        raise ShapeError(
            "features must be images normalized with ImageNet's mean and deviation, but got values up to "
            f"{largest:.3g}; divide bytes by 255 and normalize them"
        )


def check_finite(name: str, x: Tensor) -> None:
    """Raise ShapeError if a tensor holds NaN or infinity, unless its values cannot be read, see `is_readable`."""
    if is_readable(x) and not all(bound.isfinite() for bound in x.detach().aminmax()):
        raise ShapeError(f"{name} must be finite, but got NaN or infinity in {tuple(x.shape)}")
